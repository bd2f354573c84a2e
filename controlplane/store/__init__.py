"""What the control plane remembers: typed tables, and functions that read and change them.

One file per noun (``sessions`` writes in the rows of ``devices``). Each holds its ``Table``, the
frozen dataclass of a row, and async functions whose first argument is a ``Transaction``: they never
begin or commit one, so that a service joins several into one change. Updates that rest on something
read before are guarded (``WHERE generation = :seen``) and raise StaleError when nothing matched.
Rows of telemetry go in batches.

A new noun: its file here, a line in ``tables.py``, a migration in ``migrations/versions``, and its
behaviour in ``tests/controlplane/store``, which run on SQLite and on PostgreSQL.
"""
