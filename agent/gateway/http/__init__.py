"""HTTP below every API of the gateway: connections, requests, admission."""
