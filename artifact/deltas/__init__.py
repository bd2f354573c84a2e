"""Tensor deltas: a file told by what differs from one that the box holds.

``format`` is the container and its bounds, ``blocks`` the fields of quantized blocks,
``differences`` predicts them and ``residuals`` writes what the predictions miss; ``encode`` and
``restore`` are the two directions. All but ``format`` need numpy, so the agent's daemon restores in
a process of its own.

A delta needs no signature: what it restores must have the signed digest.
"""
