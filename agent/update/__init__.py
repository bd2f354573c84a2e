"""From an assignment to a committed release, or back to what ran before."""
