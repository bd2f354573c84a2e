"""Compare a variant with its source on the same data, each in a separate process.

The processes send their predictions a few rows at a time, so that neither model's predictions are
in memory as a whole, and report their peak memory at the end.
"""
