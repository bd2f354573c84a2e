"""`flotilla publish` and `flotilla release`."""
