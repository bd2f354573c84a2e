"""Releases: publishing, deltas between files, comparison."""
