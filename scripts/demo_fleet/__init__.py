"""A small real fleet on one machine: what the demo, the benchmarks and the e2e tests drive."""
