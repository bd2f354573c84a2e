"""A variant beside its source: both read the same data, each in a process of its own.

The processes hand over their predictions some rows at a time, so that neither model's are ever
held whole, and at their end say how much memory that took.
"""
