"""Mutation testing of the code whose mistakes cost most."""
