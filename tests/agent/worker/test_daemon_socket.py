"""The worker's end of its socket: one thread waits for commands, one reads during work."""

import socket
import threading

from agent.worker import messages
from agent.worker.__main__ import DaemonSocket
from agent.worker.mapped import MappedRegion

SECONDS = 20
COUNT = 1000


# Both ends stay open: a DaemonSocket ends its process when the other end is closed.
_OPEN: list[socket.socket] = []


def connected() -> tuple[socket.socket, DaemonSocket]:
    """Return the daemon's socket and the worker's end."""
    ours, theirs = socket.socketpair()
    _OPEN.append(ours)
    worker_end = DaemonSocket(theirs, MappedRegion())
    worker_end.listen()
    return ours, worker_end


def command(command_id: int) -> messages.ScoreText:
    return messages.ScoreText(id=command_id, text="x" * (command_id % 7))


def cancellation(worker_end: DaemonSocket, command_id: int) -> threading.Event:
    heard = threading.Event()
    worker_end.on_cancel(command_id, heard.set)
    return heard


def test_a_cancellation_is_heard_while_it_works() -> None:
    daemon, worker_end = connected()
    daemon.sendall(messages.encode(command(1)))
    assert worker_end.next_command(wait=True) == command(1)
    heard = cancellation(worker_end, 1)
    daemon.sendall(messages.encode(messages.Cancel(id=1)))
    assert heard.wait(SECONDS)
    assert worker_end.cancelled(1)


def test_what_came_while_it_worked_is_there_when_it_waits() -> None:
    daemon, worker_end = connected()
    daemon.sendall(messages.encode(command(1)))
    assert worker_end.next_command(wait=True) == command(1)
    heard = cancellation(worker_end, 1)
    # The second command was read before the cancellation that follows it.
    daemon.sendall(messages.encode(command(2)) + messages.encode(messages.Cancel(id=1)))
    assert heard.wait(SECONDS)
    assert worker_end.next_command(wait=True) == command(2)
    assert worker_end.next_command(wait=False) is None


def test_no_command_is_lost_between_the_two_who_read() -> None:
    daemon, worker_end = connected()
    found: list[messages.AnyCommand | None] = []
    taken = threading.Semaphore(0)

    def work() -> None:
        for _ in range(COUNT):
            found.append(worker_end.next_command(wait=True))
            taken.release()

    threading.Thread(target=work, daemon=True).start()
    for command_id in range(COUNT):
        # The work has ended, and the main thread may not wait yet.
        daemon.sendall(messages.encode(command(command_id)))
        assert taken.acquire(timeout=SECONDS)
    assert found == [command(command_id) for command_id in range(COUNT)]
