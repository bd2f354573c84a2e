"""The official clients against the gateway, unchanged, with the real engines."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import pytest_asyncio
import tritonclient.http
import tritonclient.utils
from gateway_box import running

from agent.serving import Deployment
from agent.supervisor import WorkerSpec
from artifact.manifest import Component, File, ModelVersion, Release, Task, Variant

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "The import statement combines two operations; it"


def spec(slot: str, runtime: str, task: Task, folder: Path) -> WorkerSpec:
    files = {path.name: path for path in sorted(folder.iterdir())}
    variant = Variant(
        name="full",
        runtime=runtime,
        format="gguf" if runtime == "llama_cpp" else "onnx",
        quantization="full",
        files=tuple(
            File(name=name, size=path.stat().st_size, sha256="0" * 64, index="0" * 64)
            for name, path in files.items()
        ),
        memory_bytes=1 << 20,
        context_length=256 if task is Task.TEXT_GENERATION else 0,
    )
    return WorkerSpec(
        slot=slot,
        release="acme/box@1",
        model=ModelVersion(name=f"acme/{slot}", version="1", task=task, variants=(variant,)),
        variant=variant,
        files=files,
        context_length=variant.context_length,
        memory_limit_bytes=512 << 20,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(
    demo_models: Path, built_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """A gateway before llama.cpp (chat) and ONNX Runtime (embed, digits)."""
    specs = [
        spec("chat", "llama_cpp", Task.TEXT_GENERATION, built_models / "base" / "gguf-q8"),
        spec("embed", "onnx", Task.EMBEDDING, demo_models / "embed-onnx"),
        spec("digits", "onnx", Task.CLASSIFICATION, built_models / "digits" / "fp32"),
    ]
    components = tuple(Component(slot=each.slot, model=each.model) for each in specs)
    release = Release(schema=1, name="acme/box", version="1", counter=1, components=components)
    async with running(tmp_path_factory.mktemp("box")) as box:
        workers = {each.slot: await box.supervisor.start(each) for each in specs}
        await box.serving.swap(Deployment(release, workers))
        yield str(box.client.base_url).removeprefix("http://").rstrip("/")


@pytest_asyncio.fixture(loop_scope="module")
async def client(address: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"http://{address}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


async def test_openai_lists_models(client: openai.AsyncOpenAI) -> None:
    assert {model.id async for model in client.models.list()} == {"chat", "embed", "digits"}


async def test_openai_retrieves_a_model(client: openai.AsyncOpenAI) -> None:
    found = await client.models.retrieve("chat")
    assert (found.id, found.object, found.owned_by) == ("chat", "model", "acme")
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.models.retrieve("nobody")
    assert unknown.value.code == "model_not_found"


async def test_openai_completes_and_streams_the_same(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(
        model="chat", prompt=PROMPT, max_tokens=12, temperature=0
    )
    stream = await client.completions.create(
        model="chat", prompt=PROMPT, max_tokens=12, temperature=0, stream=True
    )
    streamed = "".join([part.choices[0].text async for part in stream if part.choices])
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert streamed == whole.choices[0].text != ""


async def test_openai_chats_and_streams_the_same(client: openai.AsyncOpenAI) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "system", "content": "You write about Python."},
        {"role": "user", "content": PROMPT},
    ]
    whole = await client.chat.completions.create(
        model="chat", messages=messages, max_completion_tokens=12, temperature=0
    )
    stream = await client.chat.completions.create(
        model="chat",
        messages=messages,
        max_completion_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.role == "assistant"
    assert streamed == whole.choices[0].message.content != ""
    costs = [whole.usage, chunks[-1].usage]
    # The second prompt was processed for the first and is in the cache.
    assert [cost and (cost.prompt_tokens, cost.completion_tokens) for cost in costs] == [
        (costs[0] and costs[0].prompt_tokens, 12)
    ] * 2


async def test_openai_embeds(client: openai.AsyncOpenAI) -> None:
    found = await client.embeddings.create(model="embed", input=["import os", "licence"])
    assert [len(entry.embedding) for entry in found.data] == [256, 256]
    assert np.linalg.norm(found.data[0].embedding) == pytest.approx(1, abs=1e-4)
    plain = await client.embeddings.create(
        model="embed", input="import os", encoding_format="float"
    )
    assert plain.data[0].embedding == pytest.approx(found.data[0].embedding, abs=1e-5)


async def test_openai_raises_its_own_errors(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.completions.create(model="nobody", prompt=PROMPT)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        await client.completions.create(model="chat", prompt="word " * 2000)
    assert "context holds 256" in str(long.value)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as long:
        await client.embeddings.create(model="embed", input=["word " * 2000])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="digits", messages=[])


def seen(address: str) -> dict[str, Any]:
    """Return what the client sees; Triton's client must stay in one thread."""
    with tritonclient.http.InferenceServerClient(address) as client:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "models": [client.is_model_ready(name) for name in ("digits", "nobody")],
            "versions": [client.is_model_ready("digits", version) for version in ("1", "2")],
            "server": client.get_server_metadata(),
            "model": client.get_model_metadata("digits"),
            "the same": client.get_model_metadata("digits", "1"),
        }


async def test_tritonclient_sees_health_and_metadata(address: str) -> None:
    found = await asyncio.to_thread(seen, address)
    assert found["live"]
    assert found["ready"]
    assert found["models"] == found["versions"] == [True, False]
    assert found["server"]["name"] == "flotilla-agent"
    assert found["model"] == found["the same"]
    assert found["model"]["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}]


def inferred(
    address: str, model: str, image: Any, *, binary: bool, version: str = ""
) -> tuple[Any, Any]:
    """Return the last output, requested by name and with all; the client stays in one thread."""
    with tritonclient.http.InferenceServerClient(address) as client:
        given = tritonclient.http.InferInput("image", image.shape, "FP32")
        given.set_data_from_numpy(image, binary_data=binary)
        name = client.get_model_metadata("digits")["outputs"][-1]["name"]
        wanted = tritonclient.http.InferRequestedOutput(name, binary_data=binary)
        asked = client.infer(model, [given], version, outputs=[wanted])
        # Without outputs the client requests all of them as bytes.
        return asked.as_numpy(name), client.infer(model, [given]).as_numpy(name)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("version", ["", "1"])
async def test_tritonclient_infers(address: str, version: str, *, binary: bool) -> None:
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 64)
    call = partial(inferred, address, "digits", image, binary=binary, version=version)
    asked, among_all = await asyncio.to_thread(call)
    assert asked.shape == (1, 10)
    assert asked == pytest.approx(among_all)


async def test_tritonclient_raises_its_own_errors(address: str) -> None:
    for model, version, width, words in (
        ("digits", "1", 3, "shape"),
        ("digits", "2", 64, "is not served here"),
        ("nobody", "", 64, "is not served here"),
    ):
        image = np.zeros((1, width), dtype=np.float32)
        call = partial(inferred, address, model, image, binary=True, version=version)
        with pytest.raises(tritonclient.utils.InferenceServerException, match=words):
            await asyncio.to_thread(call)
