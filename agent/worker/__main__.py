"""The worker's entry point: ``python -m agent.worker`` with an inherited socket.

The main thread runs the engine. A second thread reads commands, so that a cancellation takes effect
between two tokens, and ends the process when the daemon has closed the socket.
"""

import argparse
import contextlib
import importlib
import importlib.util
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from agent.worker import confinement as process
from agent.worker import messages
from agent.worker.command_loop import CommandLoop, UnknownRuntimeError, failure
from agent.worker.mapped import MappedRegion, Run
from runtimes import confinement, registry
from runtimes.base import Engine, LoadSpec
from runtimes.errors import UnsupportedModelError

RECEIVE_BYTES = 1 << 18


class DaemonSocket:
    """The socket to the daemon: receives commands, sends events."""

    def __init__(self, connection: socket.socket, region: MappedRegion) -> None:
        self._connection = connection
        self._region = region
        self._frames = messages.FrameReader()
        self._inbox: deque[messages.AnyCommand] = deque()
        # The main thread reads the socket while it waits for a command, the second thread while
        # the main one works. ``_working`` changes only under the lock, and so does the reader.
        self._working = threading.Event()
        self._reading = threading.Lock()
        # Ids of commands without a final event, and of those that were cancelled.
        self._open: set[int] = set()
        self._cancelled: set[int] = set()
        # Callbacks that interrupt a running command.
        self._stops: dict[int, Callable[[], None]] = {}

    def first_command(self) -> messages.AnyCommand:
        """Wait for the first command; the daemon sends no other before its final event."""
        while True:
            data = self._connection.recv(RECEIVE_BYTES)
            if not data:
                raise SystemExit(0)
            for payload in self._frames.feed(data):
                return messages.decode_command(payload)

    def listen(self) -> None:
        """Start the thread that reads commands; it inherits the confinement of its creator."""
        self._working.set()
        threading.Thread(target=self._read_meanwhile, name="commands", daemon=True).start()

    def next_command(self, *, wait: bool) -> messages.AnyCommand | None:
        """Return the next command; None if there is none and ``wait`` is False."""
        if wait:
            self._wait()
        return self._inbox.popleft() if self._inbox else None

    def _wait(self) -> None:
        """Read until there is a command; reading here saves a wake-up by the other thread."""
        with self._reading:
            self._working.clear()
        readable = _readable(self._connection)
        while not self._inbox:
            readable.poll()
            with self._reading:
                self._read()
        self._working.set()

    def _read_meanwhile(self) -> None:
        readable = _readable(self._connection)
        try:
            while True:
                self._working.wait()
                readable.poll()
                with self._reading:
                    if self._working.is_set():
                        self._read()
        finally:
            # A command could not be decoded: the stream has no later point to resume from.
            os._exit(0)

    def send(self, event: messages.AnyEvent) -> None:
        """Send an event; block while the socket buffer is full."""
        self._connection.sendall(messages.encode(event))

    def infer(self, command: messages.Infer, run: Run) -> messages.Inferred:
        """Run on tensors in the frame or the region, and answer in the same way."""
        return self._region.infer(command, run)

    def started(self, command_id: int) -> None:
        """Record that the engine begins a command."""
        self._region.mark_started(command_id)

    def cancelled(self, command_id: int) -> bool:
        """Return True if the daemon has cancelled this command."""
        return command_id in self._cancelled

    def on_cancel(self, command_id: int, stop: Callable[[], None]) -> None:
        """Register ``stop``, which the other thread calls as soon as the command is cancelled."""
        self._stops[command_id] = stop
        if self.cancelled(command_id):
            # The cancellation may have arrived before the registration.
            stop()

    def finished(self, command_id: int) -> None:
        """Forget an answered command; later cancellations have no effect."""
        self._open.discard(command_id)
        self._stops.pop(command_id, None)
        self._cancelled.discard(command_id)

    def _read(self) -> None:
        """Read available frames; end the process if the daemon has closed the socket."""
        try:
            data = self._connection.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            # Not sys.exit, which would wait for the engine in the other thread.
            os._exit(0)
        for payload in self._frames.feed(data):
            command = messages.decode_command(payload)
            if not isinstance(command, messages.Cancel):
                self._open.add(command.id)
                self._inbox.append(command)
            elif command.id in self._open:
                self._cancelled.add(command.id)
                if (stop := self._stops.get(command.id)) is not None:
                    stop()


def _readable(connection: socket.socket) -> select.poll:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return poll


def load(daemon: DaemonSocket, command: messages.Load) -> Engine:
    """Load the model, after reporting that the process is confined.

    File access is confined before the engine is imported; system calls are confined before it
    opens the model.
    """
    paths = [*command.files.values(), *command.adapters.values()]
    locked = confinement.confine_files(map(Path, paths))
    daemon.listen()
    try:
        runtime = registry.find(command.runtime)
    except UnsupportedModelError as error:
        raise UnknownRuntimeError(str(error), advice=error.advice) from error
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(f"runtimes.{command.runtime}.engine")
    daemon.send(
        messages.Importing(
            id=command.id,
            confinement=confinement.granted(calls=confinement.confine_calls(), landlock=locked),
        )
    )
    spec = LoadSpec(
        files={name: Path(path) for name, path in command.files.items()},
        task=command.task,
        context_length=command.context_length,
        threads=command.threads,
        adapters={name: Path(path) for name, path in command.adapters.items()},
        parallel=command.parallel,
    )
    return runtime.load(spec)


def serve(daemon: DaemonSocket) -> None:
    """Execute the load command, then answer commands until the process ends."""
    first = daemon.first_command()
    if not isinstance(first, messages.Load):
        raise SystemExit(2)
    try:
        engine = load(daemon, first)
    except Exception as error:  # noqa: BLE001 - any error of an engine becomes a Failed event
        daemon.send(failure(first.id, error))
        return
    inputs, outputs = engine.tensors()
    daemon.send(
        messages.Loaded(
            id=first.id,
            inputs=inputs,
            outputs=outputs,
            parallel=engine.parallel,
        )
    )
    CommandLoop(engine, daemon).serve()


def main() -> None:
    """Confine the process, then serve."""
    parser = argparse.ArgumentParser(prog="agent.worker")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--region", type=int, default=-1)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--data-limit", type=int, default=0)
    arguments = parser.parse_args()
    process.die_with_parent(arguments.parent)
    process.limit_memory(arguments.data_limit)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(DaemonSocket(socket.socket(fileno=arguments.socket), MappedRegion(arguments.region)))


if __name__ == "__main__":
    main()
