"""One folder per runtime, the same rooms in each: inspect, quantize, engine."""
