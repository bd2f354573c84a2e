"""The control plane's store: typed tables, and functions that read and change them.

One file per noun (``sessions`` writes to the rows of ``devices``). Each holds its ``Table``, the
frozen dataclass of a row, and async functions whose first argument is a ``Transaction``. They never
begin or commit one, so that a service can join several into one change. Updates that depend on an
earlier read are guarded (``WHERE generation = :seen``) and raise StaleError if no row matched. Rows
of telemetry are written in batches.

A new noun needs its file here, a line in ``tables.py``, a migration in ``migrations/versions``, and
tests in ``tests/controlplane/store``, which run on SQLite and on PostgreSQL.
"""
