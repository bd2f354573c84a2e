"""`flotilla access`, `audit`, `ca` and `context`."""
