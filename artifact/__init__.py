"""What both sides must agree on: manifests, chunks, trust. No network, no database."""
