"""Use cases: load, decide, apply.

A service is a class that is given the database, the signals and a clock. A change goes through
``mutations.once``, so that it happens once per request id and stands in the audit log; whoever
waits for it is signalled after the commit. No network call is made inside a transaction.
"""
