"""`flotilla serve`: one process with its ports, jobs and data directory."""
