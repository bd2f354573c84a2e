"""`flotilla-agent`, the command on the box."""
