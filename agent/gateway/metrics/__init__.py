"""The Prometheus page of the gateway."""
