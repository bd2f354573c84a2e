"""The Open Inference Protocol v2 for tensors."""
