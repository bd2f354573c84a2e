"""A small real fleet on one machine, for the demo, the benchmarks and the e2e tests."""
