"""Model runtimes: one package each, with the same modules (inspect, quantize, engine)."""
