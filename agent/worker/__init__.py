"""The worker process: it runs one model and dies with the daemon."""
