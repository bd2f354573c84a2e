"""Files on the box: model files, downloads, deltas, free space, atomic replacement."""
