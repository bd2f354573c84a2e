"""The service that tracks devices and decides what each should run, and its CLI."""
