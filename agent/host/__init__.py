"""Interfaces to the operating system: systemd, the OOM killer, the allocator."""
