"""The notary: a process that holds the device's key, signs, and verifies signatures.

It ends when idle: the libraries take 14 MiB and are needed for seconds a month (docs/adr/0011).
"""

from agent.notary.notary import Ask, Notary, expect

__all__ = ["Ask", "Notary", "expect"]
