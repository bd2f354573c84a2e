"""The agent on the box: selects, proves, serves and measures models."""
