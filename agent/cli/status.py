"""Status of a box, from its running daemon or else from its journal."""

import contextlib
import http.client
import json
import socket
from typing import Any, Final

from agent.config import AgentConfig, DataDir, load_config
from artifact.sizes import in_bytes

STATUS_SECONDS: Final = 5.0
MAX_STATUS_BYTES: Final = 1 << 20


def read_status(data_dir: DataDir) -> dict[str, Any]:
    """Return the running daemon's status, or what its journal has."""
    config = load_config(data_dir)
    return _live_status(data_dir) or _stored_status(data_dir, config)


def _live_status(data_dir: DataDir) -> dict[str, Any] | None:
    """Return the running daemon's status; None if it does not answer."""
    try:
        # The daemon writes its address because port 0 takes any free one.
        address = json.loads(data_dir.gateway.read_bytes())["address"]
        return _ask(address)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ask(address: str) -> dict[str, Any]:
    """Request /status over TCP or a unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=STATUS_SECONDS)
    if address.startswith("unix:"):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(STATUS_SECONDS)
        connection.sock.connect(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        connection.sock = socket.create_connection((host.strip("[]"), int(port)), STATUS_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", "/status")
        found: dict[str, Any] = json.loads(connection.getresponse().read(MAX_STATUS_BYTES))
        return found


def _stored_status(data_dir: DataDir, config: AgentConfig) -> dict[str, Any]:
    """Return the status of a stopped daemon, from its journal."""
    from agent.journal import Journal, reference_of

    found: dict[str, Any] = {
        "name": config.name,
        "device_id": config.device_id,
        "running": False,
        "connected": False,
        "serves": "",
        "slots": {},
    }
    if not data_dir.journal.exists():
        return found
    # Without repair: another process, or another user, must not write to the journal.
    journal = Journal(data_dir.journal, repair=False)
    try:
        update, pointers = journal.update(), journal.pointers()
    finally:
        journal.close()
    found["update"] = {
        "generation": update.assignment.generation if update else 0,
        "state": update.state if update else "idle",
        "release": update.assignment.release if update else "",
        "detail": update.detail if update else "",
        "current_release": reference_of(pointers.current),
        "last_good_release": reference_of(pointers.last_good),
    }
    return found


def format_status(found: dict[str, Any]) -> str:
    """Format a status for a terminal."""
    update = found.get("update", {})
    lines = [
        f"{found['name']} ({found['device_id']})",
        "running, " + ("connected" if found["connected"] else "not connected")
        if found["running"]
        else "not running; this is from its journal",
        f"serves     {found['serves'] or '-'}",
        f"current    {update.get('current_release') or '-'}",
        f"last good  {update.get('last_good_release') or '-'}",
        f"update     {update.get('state', 'idle')}, generation {update.get('generation', 0)}",
    ]
    if found.get("problem"):
        lines.insert(2, f"problem    {found['problem']}")
    lines[2:2] = [f"warning    {text}" for text in found.get("warnings", ())]
    if update.get("detail"):
        lines.append(f"           {update['detail']}")
    if faults := update.get("device_faults"):
        counted = ", ".join(f"{reason} {count}" for reason, count in sorted(faults.items()))
        lines.append(f"           faults of this device: {counted}")
    if found["running"]:
        lines.append(f"energy     {found['energy']}")
    if found.get("throttled"):
        lines.append(f"throttled  {', '.join(found['throttled'])}")
    for slot, worker in found["slots"].items():
        now, peak = (in_bytes(worker[name], 0) for name in ("memory_bytes", "peak_memory_bytes"))
        memory = f"{now} (peak {peak})"
        lines.append(
            f"{slot:10} {worker['model']} {worker['variant']} on {worker['runtime']},"
            f" {memory if worker['loaded'] else 'not loaded because it is not in use'},"
            f" {worker['restarts']} restarts"
        )
    return "\n".join(lines)
