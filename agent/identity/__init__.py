"""The device's key, certificate and trust anchors."""
