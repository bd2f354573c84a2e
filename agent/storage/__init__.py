"""Files on the box: the file store, downloads, deltas, and free space."""
