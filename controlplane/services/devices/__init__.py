"""Devices: enrolment, identification, states, and what operators see of them."""
