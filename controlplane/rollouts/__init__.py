"""The pure core of rollouts: facts in, decisions out; no clock, no database, no network.

``machine`` has the states and their tables, ``strategy`` the operator's settings, ``waves`` the
order of devices, ``gates`` the judgement of a wave, ``tick`` the next step (``forward`` or
``undoing``, which build a ``plan``), ``commands`` the effects of operators and receipts. To add a
gate: its schema in ``strategy``, its verdict in ``gates``, its call in ``forward.verdicts``.
"""
