"""Services: each loads, decides and applies in one transaction.

A service is a class that takes the database, the signals and a clock. A change goes through
``mutations.once``, so that it happens once per request id and is recorded in the audit log. Waiting
tasks are signalled after the commit. No network call is made inside a transaction.
"""
