"""Speed and memory as ratios: each figure stands beside a named peer, measured in the same run."""
