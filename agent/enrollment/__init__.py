"""Enrolling a box with a join token, by hand or by systemd credential."""
