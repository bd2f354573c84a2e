"""Formats that agent and control plane agree on. No network, no database."""
