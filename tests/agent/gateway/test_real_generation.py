"""The text endpoints with a real GGUF model and an adapter."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_fleet import release_of
from gateway_box import Box, running

from agent.serving import Deployment
from agent.supervisor import WorkerSpec
from artifact.manifest import Adapter, File, ModelVersion, Task, Variant

PROMPT = "The import statement combines two operations; it searches for"
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "why": {"type": "string", "maxLength": 20}},
    "required": ["ok", "why"],
}


def described(path: Path) -> File:
    return File(name=path.name, size=path.stat().st_size, sha256="0" * 64, index="0" * 64)


@pytest.fixture
async def box(
    request: pytest.FixtureRequest, tmp_path: Path, demo_models: Path
) -> AsyncIterator[Box]:
    """A box with one GGUF model; a parameter is the slot's ``share_prefixes``."""
    base, adapter = demo_models / "base.gguf", demo_models / "adapter.gguf"
    variant = Variant(
        name="f16",
        runtime="llama_cpp",
        format="gguf",
        quantization="f16",
        files=(described(base),),
        memory_bytes=16 << 20,
        context_length=512,
    )
    spec = WorkerSpec(
        slot="chat",
        release="demo/fleet@1",
        model=ModelVersion(
            name="demo/llm", version="1", task=Task.TEXT_GENERATION, variants=(variant,)
        ),
        variant=variant,
        files={base.name: base},
        context_length=512,
        memory_limit_bytes=256 << 20,
        adapters={"polite": adapter},
        share_prefixes=getattr(request, "param", True),
    )
    release = release_of(spec)
    polite = Adapter(
        name="polite", model="demo/polite", version="1", file=described(adapter), bases=("0" * 64,)
    )
    (component,) = release.components
    component = msgspec.structs.replace(component, adapters=(polite,))
    release = msgspec.structs.replace(release, components=(component,))
    async with running(tmp_path) as box:
        worker = await box.supervisor.start(spec)
        await box.serving.swap(Deployment(release, {"chat": worker}))
        yield box


async def complete(box: Box, **fields: object) -> Any:
    body = {"model": "chat", "prompt": PROMPT, "temperature": 0, "max_tokens": 24, **fields}
    response = await box.client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def text_of(box: Box, **fields: object) -> str:
    return str((await complete(box, **fields))["choices"][0]["text"])


async def test_requests_with_different_adapters_at_once_are_each_right(box: Box) -> None:
    models = ["chat", "chat:polite", "chat", "chat:polite"]
    alone = [await text_of(box, model=model) for model in models]
    together = await asyncio.gather(*(text_of(box, model=model) for model in models))
    assert together == alone
    assert alone[0] != alone[1]
    listed = (await box.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["chat", "chat:polite"]


async def test_an_unknown_adapter_is_an_unknown_model(box: Box) -> None:
    response = await box.client.post(
        "/v1/completions", json={"model": "chat:rude", "prompt": PROMPT}
    )
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "chat:polite" in response.json()["error"]["message"]


async def test_a_schema_is_held_in_chats_and_completions_streamed_or_not(box: Box) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    fields = {"response_format": wanted, "max_tokens": 200, "temperature": 0.8}
    for seed in range(3):
        value = json.loads(await text_of(box, seed=seed, **fields))
        assert list(value) == ["ok", "why"]
    response = await box.client.post(
        "/v1/chat/completions",
        json={"model": "chat", "messages": [{"role": "user", "content": "?"}], "seed": 1, **fields},
    )
    assert set(json.loads(response.json()["choices"][0]["message"]["content"])) == {"ok", "why"}


async def test_any_object_and_a_grammar(box: Box) -> None:
    text = await text_of(
        box, response_format={"type": "json_object"}, max_tokens=300, temperature=0.7, seed=3
    )
    assert text.startswith("{")
    assert await text_of(box, grammar='root ::= "left" | "right"') in {"left", "right"}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "xml"}},
        {"grammar": "root ::= nobody"},
        {"grammar": 'root ::= "a"{5,2}'},
        {"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}},
        {"grammar": "x" * 70_000},
        {"top_k": -1},
        {"min_p": 2},
        {"repeat_penalty": 0},
        {"presence_penalty": -5},
        {"frequency_penalty": 5},
    ],
)
async def test_bad_requests_are_told_and_lose_no_worker(
    box: Box, fields: dict[str, object]
) -> None:
    response = await box.client.post(
        "/v1/completions", json={"model": "chat", "prompt": PROMPT, **fields}
    )
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "invalid_value"
    deployment = box.serving.deployment
    assert deployment is not None
    assert deployment.workers["chat"].stats().restarts == 0
    assert await text_of(box)


async def test_log_probabilities_of_the_chosen_tokens(box: Box) -> None:
    silent = await complete(box, max_tokens=6)
    told = (await complete(box, max_tokens=6, logprobs=0))["choices"][0]
    assert silent["choices"][0]["logprobs"] is None
    assert "".join(told["logprobs"]["tokens"]) == told["text"] == silent["choices"][0]["text"]
    assert all(-20 < value < 0 for value in told["logprobs"]["token_logprobs"])
    offsets = told["logprobs"]["text_offset"]
    assert (len(offsets), offsets[0]) == (6, 0)
    assert offsets == sorted(offsets)


async def test_a_chat_streams_its_log_probabilities(box: Box) -> None:
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 5,
        "temperature": 0,
        "logprobs": True,
    }
    whole = (await box.client.post("/v1/chat/completions", json=body)).json()["choices"][0]
    response = await box.client.post("/v1/chat/completions", json={**body, "stream": True})
    events = [json.loads(line[6:]) for line in response.text.split("\n\n") if '"choices"' in line]
    streamed = [
        entry
        for event in events
        for entry in (event["choices"][0].get("logprobs") or {"content": []})["content"]
    ]
    told = whole["logprobs"]["content"]
    assert "".join(entry["token"] for entry in told) == whole["message"]["content"]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in told]
    assert all(-20 < entry["logprob"] < 0 for entry in told)


@pytest.mark.parametrize("field", [{"logprobs": 3}, {"top_logprobs": 2, "logprobs": True}])
async def test_other_tokens_log_probabilities_are_not_told(
    box: Box, field: dict[str, object]
) -> None:
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    path, body = ("chat/completions", chat) if "top_logprobs" in field else ("completions", {})
    response = await box.client.post(
        f"/v1/{path}", json={"model": "chat", "prompt": PROMPT, **body, **field}
    )
    assert (response.status_code, response.json()["error"]["code"]) == (
        400,
        "unsupported_parameter",
    )


async def test_a_prompt_that_begins_alike_says_how_much_was_known(box: Box) -> None:
    prompt = f"{PROMPT} the named module, then it binds the results of that search to a name"
    first = await complete(box, prompt=prompt)
    again = await complete(box, prompt=f"{prompt} in the local scope")
    assert first["timings"]["cache_n"] == 0
    assert "prompt_tokens_details" not in first["usage"]
    known = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert known >= 32
    assert again["timings"]["cache_n"] == known
    read = [answer["timings"]["prompt_n"] for answer in (first, again)]
    assert read[1] == again["usage"]["prompt_tokens"] - known
    # Telemetry counts the processed tokens only; cached ones took no time.
    (tally,) = box.collector.totals.values()
    assert tally.prompt_tokens == sum(read)


LONG = f"{PROMPT} the named module, then it binds the results of that search to a name"


async def cached(box: Box, **fields: object) -> int:
    return int((await complete(box, prompt=LONG, max_tokens=1, **fields))["timings"]["cache_n"])


async def test_a_caller_learns_nothing_of_prompts_with_another_salt(box: Box) -> None:
    assert await cached(box, cache_salt="alice") == 0
    assert await cached(box, cache_salt="bob") == 0
    assert await cached(box) == 0
    for salt in ({"cache_salt": "alice"}, {"cache_salt": "bob"}, {}):
        assert await cached(box, **salt) > 32
    assert await cached(box, cache_salt="alice", cache_prompt=False) == 0
    refused = await box.client.post(
        "/v1/completions", json={"model": "chat", "prompt": "a", "cache_salt": "x" * 257}
    )
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")


@pytest.mark.parametrize("box", [False], indirect=True)
async def test_a_release_may_turn_the_sharing_of_prompts_off(box: Box) -> None:
    assert await cached(box) == 0
    assert await cached(box) == 0
    # Callers that name a salt share with each other, by their own choice.
    assert await cached(box, cache_salt="team") == 0
    assert await cached(box, cache_salt="team") > 32


async def test_a_caller_who_goes_frees_its_place(box: Box) -> None:
    """Four long requests fill the model; when one disconnects, a fifth is answered."""
    body = {"model": "chat", "prompt": "a", "max_tokens": 450, "stream": True, "temperature": 1}
    async with asyncio.timeout(60):
        for _ in range(6):
            async with box.client.stream("POST", "/v1/completions", json=body) as response:
                async for _line in response.aiter_lines():
                    break
        assert await text_of(box)
