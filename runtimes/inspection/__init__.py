"""Inspecting a file in a process of its own: bounded, confined, and killed when it must be.

The bounded readers of ``runtimes/*/inspect`` are meant to survive any file; this is for the day on
which one does not. Who asks learns what was found, or that the file is unsafe, by the deadline, and
shares neither memory nor secrets nor the network with the reading.
"""
