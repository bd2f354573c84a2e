"""Speed and memory as ratios to a named peer, measured in the same run."""
