"""The wire: servicers, the roles that may call them, and the mapping of errors to statuses.

A servicer translates a message, calls one method of one service, and translates the answer. It gets
its caller from ``current_caller()`` and raises errors of ``controlplane.errors``;
``interceptor.py`` adds the rest to every RPC: authentication, the role that ``roles.py`` requires,
deadlines and statuses.
"""
