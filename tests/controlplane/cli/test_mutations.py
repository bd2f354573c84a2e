"""A change outlasts a query's deadline, and is repeated only under the same request id."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from flotilla.v1 import rollout_pb2, rollout_pb2_grpc

from controlplane.cli import mutations
from controlplane.cli.mutations import RETRY_SECONDS, MutationInterceptor

Handler = Callable[[Any, grpc.ServicerContext], Any]


class Servicer(rollout_pb2_grpc.RolloutServiceServicer):
    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.ids: list[str] = []

    def StartRollout(  # noqa: N802 - gRPC's name
        self, request: rollout_pb2.StartRolloutRequest, context: grpc.ServicerContext
    ) -> Any:
        self.ids.append(request.request_id)
        return self.handler(request, context)

    def GetRollout(  # noqa: N802 - gRPC's name
        self, request: rollout_pb2.GetRolloutRequest, context: grpc.ServicerContext
    ) -> Any:
        self.ids.append("")
        return self.handler(request, context)


@contextmanager
def served(
    servicer: Servicer, waits: list[float]
) -> Iterator["rollout_pb2_grpc.RolloutServiceStub"]:
    server = grpc.server(ThreadPoolExecutor(2))
    rollout_pb2_grpc.add_RolloutServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        intercepted = grpc.intercept_channel(channel, MutationInterceptor(waits.append))
        yield rollout_pb2_grpc.RolloutServiceStub(intercepted)
    server.stop(None)


START = rollout_pb2.StartRolloutRequest(request_id="one", release="acme/a@1")


def interrupted(_: Any, context: grpc.ServicerContext) -> Any:
    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def test_a_change_that_takes_longer_than_a_query_is_waited_for() -> None:
    """It had started on the server when the command reported a timeout."""
    proceed = threading.Event()

    def slow(_: Any, context: grpc.ServicerContext) -> Any:
        # Proceeds once the deadline of a query would have passed.
        proceed.set()
        assert context.time_remaining() > 0.9 * mutations.MUTATION_SECONDS
        return rollout_pb2.StartRolloutResponse(rollout=rollout_pb2.Rollout(id="r1"))

    with served(Servicer(slow), []) as stub:
        answer = stub.StartRollout(START, timeout=0.2)
    assert proceed.is_set()
    assert answer.rollout.id == "r1"


def test_a_lost_answer_is_asked_for_with_the_same_request_id() -> None:
    servicer = Servicer(interrupted)
    waits: list[float] = []

    def lost_once(request: Any, context: grpc.ServicerContext) -> Any:
        if len(servicer.ids) == 1:
            interrupted(request, context)
        return rollout_pb2.StartRolloutResponse(rollout=rollout_pb2.Rollout(id="r1"))

    servicer.handler = lost_once
    with served(servicer, waits) as stub:
        assert stub.StartRollout(START, timeout=5).rollout.id == "r1"
    assert servicer.ids == ["one", "one"]
    assert waits == [RETRY_SECONDS[0]]


def test_repetition_ends() -> None:
    servicer, waits = Servicer(interrupted), []
    with served(servicer, waits) as stub, pytest.raises(grpc.RpcError):
        stub.StartRollout(START, timeout=5)
    assert len(servicer.ids) == 1 + len(RETRY_SECONDS)


def test_a_refusal_with_advice_is_final() -> None:
    """The server was there, and said what to do."""

    def overloaded(_: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata((("flotilla-advice", "Come back later."),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")

    servicer = Servicer(overloaded)
    with served(servicer, []) as stub, pytest.raises(grpc.RpcError):
        stub.StartRollout(START, timeout=5)
    assert servicer.ids == ["one"]


def test_queries_keep_their_deadline_and_are_not_repeated() -> None:
    servicer = Servicer(interrupted)
    with served(servicer, []) as stub, pytest.raises(grpc.RpcError):
        stub.GetRollout(rollout_pb2.GetRolloutRequest(id="r1"), timeout=5)
    assert servicer.ids == [""]


def test_a_server_that_is_not_there_is_reported_at_once() -> None:
    waits: list[float] = []
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        intercepted = grpc.intercept_channel(channel, MutationInterceptor(waits.append))
        with pytest.raises(grpc.RpcError):
            rollout_pb2_grpc.RolloutServiceStub(intercepted).StartRollout(START, timeout=5)
    assert waits == []
