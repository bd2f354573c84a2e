"""The pure core of rollouts: facts in, decisions out; no clock, no database, no network.

``machine`` has the states and their tables, ``strategy`` what an operator may ask for, ``waves``
who goes when, ``gates`` what counts as worse, ``tick`` what happens now (``forward`` or
``undoing``, which make a ``plan``), ``commands`` what operators and receipts change. Adding a gate:
its schema in ``strategy``, its verdict in ``gates``, its line in ``forward.verdicts``.
"""
