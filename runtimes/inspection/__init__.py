"""Inspection of a file in a separate process: bounded, confined, and killed at its deadline.

The readers in ``runtimes/*/inspect`` are meant to survive any file; this package limits the damage
if one does not. The caller gets the findings, or the verdict that the file is unsafe, by the
deadline. The inspecting process shares neither memory nor secrets nor the network with it.
"""
