"""Bytes that an idle, connected device exchanges with the control plane, extrapolated to a day."""

import ctypes
import os
import socket
import struct
import time
from dataclasses import dataclass

import psutil

from benchmarks.deployment import Deployment
from benchmarks.result import Result

BAR_BYTES_PER_DAY = 1e6
DAY_SECONDS = 86400
# One refresh of the status (agent.link.pacing), so that the extrapolation counts 288 a day.
WATCH_SECONDS = 300.0
# IPv4 and TCP headers with timestamps, without link-layer headers.
HEADER_BYTES = 52
# linux/tcp.h: struct tcp_info up to tcpi_segs_in; bytes_acked, bytes_received, segs_out, segs_in.
_TCP_INFO = struct.Struct("=120xQQII")
_SYS_PIDFD_GETFD = 438


@dataclass(frozen=True)
class Traffic:
    """Cumulative traffic of a process's TCP connections, both directions together."""

    payload_bytes: int
    segments: int

    @property
    def ip_bytes(self) -> int:
        return self.payload_bytes + self.segments * HEADER_BYTES

    def since(self, earlier: "Traffic") -> "Traffic":
        return Traffic(self.payload_bytes - earlier.payload_bytes, self.segments - earlier.segments)


def traffic(pid: int, port: int) -> Traffic:
    """Read the kernel's counters of a process's connections to a port; OSError without them."""
    payload = segments = 0
    for connection in psutil.Process(pid).net_connections(kind="tcp"):
        if connection.raddr and connection.raddr.port == port:
            acked, received, out, into = _tcp_info(pid, connection.fd)
            payload += acked + received
            segments += out + into
    return Traffic(payload, segments)


def _tcp_info(pid: int, descriptor: int) -> tuple[int, int, int, int]:
    """Return TCP_INFO of another process's socket, through a duplicate of its descriptor."""
    pidfd = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        duplicate = libc.syscall(_SYS_PIDFD_GETFD, pidfd, descriptor, 0)
        if duplicate < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
    finally:
        os.close(pidfd)
    with socket.socket(fileno=duplicate) as connection:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        acked, received, out, into = _TCP_INFO.unpack(info)
        return acked, received, out, into


def run(deployment: Deployment) -> list[Result]:
    """Watch the daemon's stream while the box serves a release without requests."""
    assert deployment.box.process.popen is not None
    pid = deployment.box.process.popen.pid
    port = int(deployment.server.device.rpartition(":")[2])
    before = traffic(pid, port)
    time.sleep(WATCH_SECONDS)
    spent = traffic(pid, port).since(before)
    per_day = spent.ip_bytes * DAY_SECONDS / WATCH_SECONDS
    return [
        Result(
            "agent, idle, bytes on the wire",
            f"{per_day / 1e6:.2f} MB/day",
            f"{spent.payload_bytes} B and {spent.segments} segments in {WATCH_SECONDS:.0f} s",
            f"< {BAR_BYTES_PER_DAY / 1e6:.0f} MB/day",
            per_day < BAR_BYTES_PER_DAY,
            "both directions, with TCP/IP headers",
        )
    ]
