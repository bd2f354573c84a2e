"""`flotilla model`: build, quantize and inspect models."""
