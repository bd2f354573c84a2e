"""Tensor deltas describe a file by its differences from a file that the device holds.

``format`` is the container and its bounds, ``blocks`` the fields of quantized blocks.
``differences`` predicts the fields and ``residuals`` encodes the errors of the predictions.
``encode`` and ``restore`` are the two directions. All but ``format`` need numpy, so the agent's
daemon restores in a separate process.

A delta needs no signature: the restored file must have the signed digest.
"""
