"""The operators' command, `flotilla`."""
