"""The update of a box: from an assignment to a committed release, or back to the previous one."""
