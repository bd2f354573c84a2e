"""`flotilla device` and `flotilla token`."""
