"""Steady inference traffic through the gateways; counts failed and slow requests."""

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_SECONDS = 30.0


@dataclass
class Tally:
    """Counts of one caller. ``longest_seconds`` is the slowest whole request."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    longest_seconds: float = 0.0


def call(address: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """POST JSON to a gateway; return the status and the parsed answer (the last event of a stream).

    ValueError when a stream breaks off or ends with an error.
    """
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
    try:
        connection.request(
            "POST", path, json.dumps(body), headers={"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        data = answer.read()
        if answer.headers.get_content_type() == "text/event-stream":
            return answer.status, last_event(data)
        return answer.status, json.loads(data)
    finally:
        connection.close()


def last_event(data: bytes) -> dict[str, Any]:
    """Return the last event of a stream; ValueError if it broke off or failed."""
    *_, last, end = [line for line in data.decode().splitlines() if line]
    event: dict[str, Any] = json.loads(last.removeprefix("data: "))
    if end != "data: [DONE]" or "error" in event:
        raise ValueError(f"the stream ended with {last[:200]!a}, {end[:20]!a}")
    return event


class Traffic:
    """Callers in threads, one per (gateway, request), until stopped."""

    def __init__(self, pause_seconds: float = 0.05) -> None:
        self.pause_seconds = pause_seconds
        self.tallies: dict[str, Tally] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, name: str, address: str, path: str, body: dict[str, Any]) -> None:
        tally = self.tallies.setdefault(name, Tally())
        thread = threading.Thread(target=self._run, args=(tally, address, path, body), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, tally: Tally, address: str, path: str, body: dict[str, Any]) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                status, answer = call(address, path, body)
                if status != 200:
                    tally.failures.append(f"{path} answered {status}: {json.dumps(answer)[:300]}")
            except (OSError, http.client.HTTPException, ValueError) as error:
                tally.failures.append(f"{path}: {type(error).__name__}: {error}")
            tally.requests += 1
            tally.longest_seconds = max(tally.longest_seconds, time.monotonic() - started)
            self._stop.wait(self.pause_seconds)

    @property
    def requests(self) -> int:
        return sum(tally.requests for tally in self.tallies.values())

    @property
    def failures(self) -> list[str]:
        return [f"{name}: {why}" for name, tally in self.tallies.items() for why in tally.failures]

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_SECONDS + 1)
