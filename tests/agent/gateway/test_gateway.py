"""The gateway over real sockets with real workers."""

import asyncio
import os
import signal
from pathlib import Path

import httpx
import msgspec
import pytest
from gateway_box import Box, running
from prometheus_client.parser import text_string_to_metric_families

from agent.errors import GatewayAddressError
from agent.gateway import Gateway
from agent.serving import Serving
from agent.supervisor import Supervisor
from agent.telemetry import Collector
from artifact.manifest import Task
from runtimes.fake import FakeModel, Faults


def events(text: str) -> list[dict[str, object]]:
    lines = [line for line in text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [msgspec.json.decode(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_a_completion_carries_usage_and_timings(box: Box) -> None:
    await box.deploy(chat=FakeModel(reply="abcdef"))
    response = await box.complete(max_tokens=5, temperature=0)
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": "abcde", "finish_reason": "length", "logprobs": None}
    ]
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert body["timings"]["predicted_n"] == 5
    assert body["timings"]["ttft_ms"] > 0


async def test_a_chat_answer_is_the_assistants(box: Box) -> None:
    await box.deploy(chat=FakeModel(reply="abc", end_after_tokens=3))
    response = await box.client.post(
        "/v1/chat/completions",
        json={
            "model": "chat",
            "temperature": 0,
            "messages": [
                {"role": "developer", "content": "be short"},
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            ],
        },
    )
    choice = response.json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "abc"}
    assert choice["finish_reason"] == "stop"
    prompt = "system: be short\nuser: hi\n"
    assert response.json()["usage"]["prompt_tokens"] == len(prompt)


async def test_a_stream_says_the_same_as_the_whole_answer(box: Box) -> None:
    await box.deploy(chat=FakeModel(reply="grüße "))
    whole = (await box.complete(max_tokens=9, temperature=0)).json()
    response = await box.complete(
        max_tokens=9, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    assert response.headers["content-type"] == "text/event-stream"
    *chunks, usage = events(response.text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]  # type: ignore[index]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (  # type: ignore[index]
        len(chunks) - 1
    )
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"  # type: ignore[index]
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]


async def test_a_chat_stream_opens_with_the_role(box: Box) -> None:
    await box.deploy(chat=FakeModel(reply="ab"))
    response = await box.client.post(
        "/v1/chat/completions",
        json={
            "model": "chat",
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 2,
            "temperature": 0,
            "stream": True,
        },
    )
    deltas = [event["choices"][0]["delta"] for event in events(response.text)]  # type: ignore[index]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}]


async def test_stop_strings_are_left_out(box: Box) -> None:
    await box.deploy(chat=FakeModel(reply="one. two. "))
    body = (await box.complete(max_tokens=30, temperature=0, stop=". t")).json()
    assert body["choices"][0]["text"] == "one"
    assert body["choices"][0]["finish_reason"] == "stop"


async def test_models_are_listed_by_route(box: Box) -> None:
    await box.deploy(chat=FakeModel(), digits=FakeModel(task=Task.TENSOR))
    models = (await box.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["assistant", "chat", "digits"]
    assert models[2]["flotilla"] == {
        "release": "demo/fleet@1",
        "slot": "digits",
        "model": "demo/fake@1",
        "task": "tensor",
        "variant": "full",
        "runtime": "fake",
        "loaded": True,
    }


async def test_tensors_go_through_the_open_inference_protocol(box: Box) -> None:
    await box.deploy(digits=FakeModel(task=Task.TENSOR, width=2))
    metadata = (await box.client.get("/v2/models/digits")).json()
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 2]}]
    assert (await box.client.get("/v2/models/digits/ready")).status_code == 200
    response = await box.client.post(
        "/v2/models/digits/infer",
        json={
            "id": "mine",
            "inputs": [
                {
                    "name": "input",
                    "datatype": "FP32",
                    "shape": [2, 2],
                    "data": [[1, 2.5], [3, 4]],
                }
            ],
            "outputs": [{"name": "output"}],
        },
    )
    assert response.json() == {
        "model_name": "digits",
        "model_version": "1",
        "id": "mine",
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [2, 2], "data": [2, 5, 6, 8]}],
    }


TENSOR = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
PROMPT = {"model": "chat", "prompt": "hi"}
HELLO = [{"role": "user", "content": "hi"}]

BAD = [
    ("/v1/completions", b"{", 400, "invalid_value"),
    ("/v1/completions", b"[]", 400, "invalid_value"),
    ("/v1/completions", b"\xff\xfe", 400, "invalid_value"),
    ("/v1/completions", b"[" * 100_000, 400, "invalid_value"),
    ("/v1/completions", b'{"model":"chat","prompt":"' + b"x" * (1 << 20) + b'"}', 413, "body"),
    ("/v1/completions", {"model": "chat"}, 400, "invalid_value"),
    ("/v1/completions", {**PROMPT, "model": "nobody"}, 404, "model_not_found"),
    ("/v1/completions", {**PROMPT, "model": "digits"}, 400, "unsupported_task"),
    ("/v1/completions", {**PROMPT, "prompt": ["a", "b"]}, 400, "invalid_value"),
    ("/v1/completions", {**PROMPT, "prompt": [1, 2]}, 400, "invalid_value"),
    ("/v1/completions", {**PROMPT, "prompt": ""}, 400, "invalid_value"),
    ("/v1/completions", {**PROMPT, "prompt": "x" * 4000}, 400, "context_length_exceeded"),
    ("/v1/completions", {**PROMPT, "max_tokens": 0}, 400, "invalid_value"),
    ("/v1/completions", {**PROMPT, "max_tokens": 1e9}, 400, "invalid_value"),
    ("/v1/completions", {**PROMPT, "max_tokens": "5"}, 400, "invalid_value"),
    ("/v1/completions", {**PROMPT, "temperature": -1}, 400, "invalid_value"),
    ("/v1/completions", {**PROMPT, "top_p": 0}, 400, "invalid_value"),
    ("/v1/completions", {**PROMPT, "seed": -1}, 400, "invalid_value"),
    ("/v1/completions", {**PROMPT, "stop": [""]}, 400, "invalid_value"),
    ("/v1/completions", {**PROMPT, "stop": ["a"] * 5}, 400, "invalid_value"),
    ("/v1/completions", {**PROMPT, "n": 2}, 400, "unsupported_parameter"),
    ("/v1/completions", {**PROMPT, "echo": True}, 400, "unsupported_parameter"),
    ("/v1/completions", {**PROMPT, "logprobs": 5}, 400, "unsupported_parameter"),
    ("/v1/chat/completions", {"model": "chat", "messages": []}, 400, "invalid_value"),
    (
        "/v1/chat/completions",
        {"model": "chat", "messages": [{"role": "wizard", "content": "hi"}]},
        400,
        "invalid_value",
    ),
    (
        "/v1/chat/completions",
        {"model": "chat", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "invalid_value",
    ),
    (
        "/v1/chat/completions",
        {"model": "chat", "messages": HELLO, "tools": [{"type": "function"}]},
        400,
        "unsupported_parameter",
    ),
    ("/v2/models/digits/infer", {"inputs": []}, 400, ""),
    ("/v2/models/nobody/infer", {"inputs": [TENSOR]}, 404, ""),
    ("/v2/models/chat/infer", {"inputs": [TENSOR]}, 400, ""),
    ("/v2/models/digits/infer", {"inputs": [{**TENSOR, "shape": [1, 5]}]}, 400, ""),
    ("/v2/models/digits/infer", {"inputs": [{**TENSOR, "shape": [1, 1 << 30]}]}, 400, ""),
    ("/v2/models/digits/infer", {"inputs": [{**TENSOR, "shape": [1, -4]}]}, 400, ""),
    ("/v2/models/digits/infer", {"inputs": [{**TENSOR, "datatype": "BYTES"}]}, 400, ""),
    ("/v2/models/digits/infer", {"inputs": [{**TENSOR, "datatype": "INT8"}]}, 400, ""),
    ("/v2/models/digits/infer", {"inputs": [{**TENSOR, "data": ["a", 2, 3, 4]}]}, 400, ""),
    ("/v2/models/digits/infer", {"inputs": [{**TENSOR, "name": "wrong"}]}, 400, ""),
    (
        "/v2/models/digits/infer",
        {"inputs": [TENSOR], "outputs": [{"name": "wrong"}]},
        400,
        "",
    ),
    (
        "/v2/models/digits/infer",
        {"inputs": [{**TENSOR, "data": [[[[[[[[[[1, 2, 3, 4]]]]]]]]]]}]},
        400,
        "",
    ),
]


async def test_bad_input_gets_one_clear_error_each(box: Box) -> None:
    await box.deploy(chat=FakeModel(), digits=FakeModel(task=Task.TENSOR))
    for path, body, status, code in BAD:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        response = await box.client.post(
            path, content=content, headers={"content-type": "application/json"}
        )
        case = f"{path} {content[:200]!r} -> {response.text[:300]}"
        assert response.status_code == status, case
        error = response.json()["error"]
        if path.startswith("/v1"):
            assert error["type"] == "invalid_request_error", case
            assert error["code"].startswith(code), case
            assert error["message"], case
        else:
            assert isinstance(error, str), case
            assert error, case
    # The gateway still answers.
    assert (await box.complete()).status_code == 200


async def test_the_error_names_the_field(box: Box) -> None:
    await box.deploy(chat=FakeModel())
    response = await box.complete(max_tokens=-1)
    assert response.json()["error"]["param"] == "max_tokens"


async def test_only_json_bodies_are_taken(box: Box) -> None:
    response = await box.client.post("/v1/completions", data={"model": "chat"})
    assert response.status_code == 415


async def test_only_local_names_are_answered(box: Box) -> None:
    response = await box.client.get("/v1/models", headers={"host": "evil.example:80"})
    assert response.status_code == 403
    for name in ("localhost:1", "127.0.0.1", "[::1]:80"):
        response = await box.client.get("/v1/models", headers={"host": name})
        assert response.status_code == 200, name


async def test_unknown_pages_and_methods_are_json_errors(box: Box) -> None:
    assert (await box.client.get("/v1/nothing")).json()["error"]["code"] == "unknown_url"
    assert "no path" in (await box.client.get("/v2/nothing")).json()["error"]
    response = await box.client.get("/v1/completions")
    assert response.status_code == 405
    assert response.json()["error"]["code"] == "unknown_url"
    assert response.headers["allow"] == "POST"
    assert "date" in response.headers


async def test_a_model_that_is_not_here_is_404_when_asked_whether_it_is_ready(box: Box) -> None:
    assert (await box.client.get("/v2/models/nobody/ready")).status_code == 503
    await box.deploy(digits=FakeModel(task=Task.TENSOR))
    for unknown in ("nobody", "digits/versions/none"):
        ready = await box.client.get(f"/v2/models/{unknown}/ready")
        described = await box.client.get(f"/v2/models/{unknown}")
        assert ready.status_code == 404
        assert ready.json() == described.json()


async def test_nothing_served_is_503_and_not_ready(box: Box) -> None:
    response = await box.complete()
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert (await box.client.get("/readyz")).status_code == 503
    assert (await box.client.get("/v2/health/ready")).status_code == 503
    assert (await box.client.get("/healthz")).status_code == 200
    await box.deploy(chat=FakeModel())
    assert (await box.client.get("/readyz")).status_code == 200


async def test_request_ids_come_back(box: Box) -> None:
    response = await box.client.get("/v1/models", headers={"x-request-id": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    response = await box.client.get("/v1/models", headers={"x-request-id": "a b" * 99})
    assert len(response.headers["x-request-id"]) == 32


async def test_beyond_the_limit_is_429_with_retry_after(tmp_path: Path) -> None:
    async with running(tmp_path, max_concurrency=2) as box:
        await box.deploy(chat=FakeModel(token_seconds=0.01))
        responses = await asyncio.gather(*(box.complete(max_tokens=20) for _ in range(6)))
        statuses = sorted(response.status_code for response in responses)
        assert statuses == [200, 200, 429, 429, 429, 429]
        refused = next(response for response in responses if response.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert (await box.complete(max_tokens=2)).status_code == 200


async def test_a_crash_before_the_first_token_is_not_seen(box: Box) -> None:
    deployment = await box.deploy(chat=FakeModel())
    worker = deployment.workers["chat"].pid
    os.kill(worker, signal.SIGSTOP)
    answer = asyncio.create_task(box.complete(max_tokens=2, temperature=0, stream=True))
    await asyncio.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    response = await answer
    assert response.status_code == 200
    assert len(events(response.text)) == 2


async def test_a_crash_after_it_is_an_event_and_counted(box: Box) -> None:
    await box.deploy(chat=FakeModel(faults=Faults(crash_after_tokens=3)))
    response = await box.complete(max_tokens=10, stream=True)
    last = response.text.strip().rpartition("\n\n")[2]
    assert msgspec.json.decode(last.removeprefix("data: "))["error"]["code"] == "worker_crashed"
    whole = await box.complete(max_tokens=10)
    assert whole.status_code == 500
    assert whole.headers["x-should-retry"] == "false"
    assert whole.json()["error"]["type"] == "server_error"
    (window,) = box.collector.roll([])
    assert (window.requests, window.errors) == (2, 2)


async def test_hot_swap_under_concurrent_streams_fails_none(box: Box) -> None:
    def model(reply: str) -> FakeModel:
        return FakeModel(reply=reply, token_seconds=0.001)

    await box.deploy("1", chat=model("1"))
    texts: list[str] = []
    stop = asyncio.Event()

    async def caller() -> None:
        while not stop.is_set():
            response = await box.complete(max_tokens=20, temperature=0, stream=True)
            assert response.status_code == 200
            chunks = events(response.text)
            texts.append("".join(chunk["choices"][0]["text"] for chunk in chunks))  # type: ignore[index]

    callers = [asyncio.create_task(caller()) for _ in range(12)]
    for version in ("2", "3", "4"):
        await box.deploy(version, chat=model(version))
    stop.set()
    await asyncio.gather(*callers)
    assert {text[0] for text in texts} >= {"1", "2", "3"}
    assert all(text == text[0] * 20 for text in texts)
    windows = box.collector.roll([])
    assert sum(window.requests for window in windows) == len(texts)
    assert sum(window.errors for window in windows) == 0


async def test_metrics_are_valid_prometheus_text(box: Box) -> None:
    await box.deploy(chat=FakeModel())
    await box.complete(max_tokens=4)
    text = (await box.client.get("/metrics")).text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    (ok, error) = families["flotilla_requests"].samples
    assert (ok.labels["outcome"], ok.value, error.value) == ("ok", 1, 0)
    assert ok.labels["release"] == "demo/fleet@1"
    assert families["flotilla_generated_tokens"].samples[0].value == 4
    assert families["flotilla_worker_memory_bytes"].samples[0].value > 1 << 20
    quantiles = {s.labels.get("quantile") for s in families["flotilla_ttft_seconds"].samples}
    assert quantiles == {"0.5", "0.95", "0.99", None}
    assert families["llamacpp:tokens_predicted"].samples[0].value == 4
    assert families["llamacpp:prompt_tokens"].samples[0].value == 2
    assert families["llamacpp:requests_processing"].samples[0].value == 0
    success = families["nv_inference_request_success"].samples[0]
    assert (success.value, success.labels["version"]) == (1, "1")
    assert families["nv_inference_request_duration_us"].samples[0].value > 0
    assert families["flotilla_device_warnings"].samples[0].value == 1


async def test_status_is_the_daemons(box: Box) -> None:
    assert (await box.client.get("/status")).json()["state"] == "idle"


async def test_it_listens_on_a_unix_socket(tmp_path: Path) -> None:
    supervisor = Supervisor()
    gateway = Gateway(Serving(supervisor), Collector(), dict)
    path = tmp_path / "gateway.sock"
    assert await gateway.start(f"unix:{path}") == f"unix:{path}"
    assert path.stat().st_mode & 0o777 == 0o660
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        assert (await client.get("/healthz")).status_code == 200
    await gateway.stop()
    assert not path.exists()


async def test_addresses_that_others_could_reach_are_refused(box: Box) -> None:
    def gateway(**options: bool) -> Gateway:
        return Gateway(box.serving, box.collector, dict, **options)

    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):  # noqa: S104 - it must be refused
        with pytest.raises(GatewayAddressError, match="other machines"):
            await gateway().start(host)
    allowed = gateway(allow_remote=True)
    assert await allowed.start("0.0.0.0")  # noqa: S104 - explicitly allowed
    await allowed.stop()


async def test_a_taken_port_is_a_clear_error(box: Box) -> None:
    port = box.client.base_url.port
    assert port is not None
    with pytest.raises(GatewayAddressError, match="cannot listen"):
        await Gateway(box.serving, box.collector, dict).start("127.0.0.1", port)


async def test_stopping_lets_a_running_answer_finish(tmp_path: Path) -> None:
    async with running(tmp_path) as box:
        await box.deploy(chat=FakeModel(token_seconds=0.01))
        answer = asyncio.create_task(box.complete(max_tokens=30))
        await asyncio.sleep(0.1)
        await box.gateway.stop(drain_seconds=5)
        assert (await answer).json()["usage"]["completion_tokens"] == 30
