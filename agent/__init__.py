"""The daemon on the box: chooses, proves, serves and measures models."""
