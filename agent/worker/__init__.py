"""The process that holds one model: it dies with the daemon, and the daemon outlives it."""
