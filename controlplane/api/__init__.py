"""The wire: servicers, who may call them, and how errors become statuses.

A servicer translates a message, calls one method of one service, and translates the answer. It
knows its caller from ``current_caller()`` and raises our own errors; ``interceptor.py`` does the
rest for every RPC: authentication, the role that ``roles.py`` asks for, deadlines, statuses.
"""
