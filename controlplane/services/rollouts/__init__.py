"""Rollouts: commands of operators, and the driver that moves them on."""
