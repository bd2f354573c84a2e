"""The operating system around the daemon: systemd, the OOM killer, the allocator."""
