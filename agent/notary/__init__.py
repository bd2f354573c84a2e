"""The device's key and every signature, in a process of their own that ends when it rests.

What checks signatures takes 14 MiB, and is needed for some seconds a month (docs/adr/0011).
"""

from agent.notary.notary import Ask, Notary, expect

__all__ = ["Ask", "Notary", "expect"]
