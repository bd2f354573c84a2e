"""Limits and threads of this process."""
