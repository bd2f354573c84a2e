"""A manifest has one encoding, and every name in it is defined."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import InvalidManifestError
from artifact.manifest import (
    MAX_MANIFEST_BYTES,
    Release,
    canonical_json,
    check_publishable,
    decode_release,
    encode_release,
    split_reference,
    target_path,
)

TENSOR = {"name": "x", "datatype": "FP32", "shape": [2], "data": [0.5, 1.0]}


def document() -> dict[str, Any]:
    """Return a release with every kind of part, as JSON types."""
    file = {"name": "m.gguf", "size": 7, "sha256": "ab" * 32, "index": "cd" * 32}
    variant = {
        "name": "q8",
        "runtime": "llama_cpp",
        "format": "gguf",
        "quantization": "q8_0",
        "files": [file],
        "memory_bytes": 9,
        "context_length": 512,
        "required_isa": ["avx2"],
        "quality": {
            "metric": "perplexity",
            "value": 11.5,
            "higher_is_better": False,
            "dataset": "heldout",
        },
    }
    model = {
        "name": "acme/tiny",
        "version": "1",
        "task": "text-generation",
        "variants": [variant],
        "lineage": {"relation": "finetune", "name": "acme/base", "version": "1"},
    }
    text = {"check": "perplexity", "name": "a", "slot": "chat", "text": "x" * 16, "maximum": 30.0}
    tensor = {
        "check": "tensor",
        "name": "b",
        "slot": "chat",
        "inputs": [TENSOR],
        "outputs": [TENSOR],
    }
    return {
        "schema": 1,
        "name": "acme/assistant",
        "version": "1.0",
        "counter": 3,
        "components": [{"slot": "chat", "model": model}],
        "routes": [{"name": "assistant", "slot": "chat"}],
        "probation": {"checks": [text, tensor]},
        "selection": {"objective": "memory", "pins": {"chat": "q8"}},
    }


def composed(routes: list[dict[str, Any]], *, bases: tuple[str, ...] = ("ab" * 32,)) -> Release:
    """Return a release with slots chat (with an adapter), large, embed and sort, and routes."""
    (chat,) = document()["components"]
    models = {"large": "text-generation", "embed": "embedding", "sort": "classification"}
    others = [
        {"slot": slot, "model": chat["model"] | {"name": f"acme/{slot}", "task": task}}
        for slot, task in models.items()
    ]
    file = {"name": "lora.gguf", "size": 7, "sha256": "ef" * 32, "index": "01" * 32}
    adapter = {"name": "polite", "model": "acme/polite", "version": "1", "file": file}
    chat["adapters"] = [adapter | {"bases": bases}]
    return release(components=[chat, *others], routes=routes)


def release(**changes: Any) -> Release:
    return msgspec.convert(document() | changes, Release)


def test_a_release_survives_encoding_and_encodes_to_the_same_bytes() -> None:
    data = encode_release(release())
    assert decode_release(data) == release()
    assert encode_release(decode_release(data)) == data


@given(st.data())
def test_a_flipped_bit_is_refused_or_says_something_else(data: st.DataObject) -> None:
    """No two byte strings are the same release, so a digest identifies its content."""
    encoded = bytearray(encode_release(release()))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        other = decode_release(bytes(encoded))
    except InvalidManifestError:
        return
    assert other != release()


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b" " + encode_release(release()),
        encode_release(release()) + b"\n",
        json.dumps(document()).encode(),
        canonical_json(document() | {"description": ""}),
        canonical_json(document() | {"colour": "red"}),
        canonical_json(document() | {"schema": 2}),
        b" " * (MAX_MANIFEST_BYTES + 1),
    ],
    ids=range(12),
)
def test_anything_but_the_canonical_form_is_refused(wrong: bytes) -> None:
    with pytest.raises(InvalidManifestError) as raised:
        decode_release(wrong)
    assert raised.value.advice


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"routes": [{"name": "a", "slot": "eyes"}]}, "route 'a' names the unknown slot 'eyes'"),
        ({"routes": [{"name": "a", "slot": "chat"}] * 2}, "route 'a' stands there twice"),
        ({"components": document()["components"] * 2}, "slot 'chat' stands there twice"),
        ({"selection": {"pins": {"chat": "q9"}}}, "pinned to the unknown variant 'q9'"),
        ({"selection": {"pins": {"eyes": "q8"}}}, "pin 'eyes' names the unknown slot"),
        ({"selection": {"slots": {"eyes": {}}}}, "selection of slot 'eyes' names the unknown"),
        ({"selection": {"exclude": [{"slot": "eyes", "runtime": "onnx"}]}}, "unknown slot 'eyes'"),
        ({"selection": {"exclude": [{"quantization": "q9"}]}}, "quantization q9 matches no"),
        ({"selection": {"exclude": [{"slot": "chat"}]}}, "does not say what it excludes"),
        ({"selection": {"exclude": [{"runtime": "llama_cpp"}]}}, "'chat' is left with no variant"),
        (
            {"selection": {"exclude": [{"variant": "q8"}], "pins": {"chat": "q8"}}},
            "'chat' is pinned to 'q8', which is excluded",
        ),
        ({"selection": {"min_context_length": 513}}, "context of 513 tokens, .* at most 512"),
        ({"selection": {"slots": {"chat": {"max_memory_bytes": 6}}}}, "allows 6 bytes of memory"),
    ],
)
def test_a_release_that_contradicts_itself_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidManifestError, match=reason):
        encode_release(release(**changes))


@pytest.mark.parametrize(
    ("task", "wrong"),
    [("text-generation", "b"), ("classification", "a"), ("tensor", "a"), ("embedding", "[ab]")],
)
def test_a_check_that_no_model_of_its_slot_could_pass_is_not_published(
    task: str, wrong: str
) -> None:
    """The release has two checks: a of perplexity, b of tensors."""
    (chat,) = document()["components"]
    mixed = release(components=[chat | {"model": chat["model"] | {"task": task}}])
    with pytest.raises(InvalidManifestError, match=f"check '{wrong}' is for slot 'chat'"):
        check_publishable(mixed)
    fine = [c for c in document()["probation"]["checks"] if c["name"] not in wrong]
    check_publishable(
        msgspec.structs.replace(mixed, probation=release(probation={"checks": fine}).probation)
    )


def expecting(*vectors: tuple[float, ...], min_cosine: float = 0.9) -> dict[str, Any]:
    expected = [{"text": f"text {at}", "vector": vector} for at, vector in enumerate(vectors)]
    check = {"check": "embedding", "name": "c", "slot": "chat", "expected": expected}
    return {"checks": [check | {"min_cosine": min_cosine}]}


def test_an_embedding_model_is_checked_by_vectors() -> None:
    (chat,) = document()["components"]
    components = [chat | {"model": chat["model"] | {"task": "embedding"}}]
    good = release(components=components, probation=expecting((0.6, 0.8), (1.0, 0.0)))
    assert decode_release(encode_release(good)) == good
    check_publishable(good)
    with pytest.raises(InvalidManifestError, match="check 'c' is for slot 'chat'"):
        check_publishable(release(probation=expecting((0.6, 0.8))))
    for wrong in (expecting((0.6, 0.8), (0.0, 0.0)), expecting((0.6, 0.8), (1.0,))):
        with pytest.raises(InvalidManifestError, match="'c' expects vectors of zeros, or"):
            check_publishable(release(components=components, probation=wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        expecting(),
        expecting(()),
        expecting((1e7,)),
        expecting((1.0,) * 8193),
        expecting(*[(1.0,)] * 17),
        # No rounding must change it.
        expecting((1.0,), min_cosine=1.0),
        expecting((1.0,), min_cosine=0.0),
    ],
    ids=range(7),
)
def test_expected_vectors_are_bounded(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        release(probation=wrong)


def test_a_slot_may_ask_otherwise_than_its_release() -> None:
    selection = {"min_tokens_per_second": 5.0, "slots": {"chat": {"max_ttft_seconds": 0.5}}}
    read = decode_release(encode_release(release(selection=selection)))
    asked = read.selection.of("chat")
    assert (asked.min_tokens_per_second, asked.max_ttft_seconds) == (5.0, 0.5)
    assert read.selection.of("eyes").max_ttft_seconds is None


SPLIT = [{"slot": "chat", "adapter": "polite", "weight": 1}, {"slot": "chat", "weight": 9}]
CASCADE = {
    "steps": [{"slot": "chat"}, {"slot": "large"}],
    "escalate": {"below_mean_log_probability": -1.5, "refusals": ["i cannot"]},
}
PIPELINE = {
    "embed": "embed",
    "classify": "sort",
    "input": "x",
    "output": "y",
    "targets": [{"slot": "chat", "adapter": "polite"}, {"slot": "large"}],
}


def test_routes_of_every_kind_survive_encoding_and_know_their_targets() -> None:
    routes: list[dict[str, Any]] = [
        {"name": "alias", "slot": "chat", "adapter": "polite"},
        {"name": "split", "split": SPLIT},
        {"name": "cascade", "cascade": CASCADE},
        {"name": "pipeline", "pipeline": PIPELINE},
    ]
    whole = composed(routes)
    assert decode_release(encode_release(whole)) == whole
    assert [[(t.slot, t.adapter) for t in route.targets()] for route in whole.routes] == [
        [("chat", "polite")],
        [("chat", "polite"), ("chat", "")],
        [("chat", ""), ("large", "")],
        [("chat", "polite"), ("large", "")],
    ]
    assert set(whole.files()) == {"ab" * 32, "ef" * 32}


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        ({}, "does not say where it leads"),
        ({"slot": "chat", "split": SPLIT}, "says it twice"),
        ({"split": SPLIT, "adapter": "polite"}, "says it twice"),
        ({"slot": "chat", "adapter": "rude"}, "unknown adapter 'rude'"),
        ({"slot": "large", "adapter": "polite"}, "unknown adapter 'polite'"),
        ({"split": [*SPLIT, {"slot": "eyes", "weight": 1}]}, "unknown slot 'eyes'"),
        ({"split": [*SPLIT, {"slot": "embed", "weight": 1}]}, "splits between different tasks"),
        ({"cascade": CASCADE | {"steps": [{"slot": "chat"}, {"slot": "sort"}]}}, "leads to"),
        ({"pipeline": PIPELINE | {"embed": "chat"}}, "uses slot 'chat', which does text-gen"),
        ({"pipeline": PIPELINE | {"classify": "eyes"}}, "unknown slot 'eyes'"),
        ({"pipeline": PIPELINE | {"targets": [{"slot": "sort"}] * 2}}, "leads to classification"),
    ],
)
def test_a_route_that_leads_nowhere_is_refused(route: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidManifestError, match=reason):
        encode_release(composed([{"name": "a", **route}]))


def test_an_adapter_of_another_base_is_refused() -> None:
    with pytest.raises(InvalidManifestError, match="'polite' of slot 'chat' is bound to other"):
        encode_release(composed([], bases=("cd" * 32,)))


def test_only_models_that_generate_text_take_adapters() -> None:
    chat, _, embed, sort = composed([]).components
    changed = msgspec.structs.replace(embed, adapters=chat.adapters)
    with pytest.raises(InvalidManifestError, match="slot 'embed' has adapters"):
        encode_release(msgspec.structs.replace(composed([]), components=(chat, changed, sort)))


@pytest.mark.parametrize(
    "name", ["../etc/passwd", "a/../b", "/abs", ".hidden", "a\\b", "a\n", "", "x" * 129]
)
def test_a_file_name_that_could_be_a_path_is_refused(name: str) -> None:
    changed = document()
    changed["components"][0]["model"]["variants"][0]["files"][0]["name"] = name
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(changed, Release)


def test_a_reference_leads_to_its_target_path() -> None:
    assert target_path("acme/chat@1.0+x") == "acme/chat/1.0+x.json"
    assert split_reference("acme/chat@1") == ("acme/chat", "1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "acme/chat",
        "acme@1",
        "acme/chat@",
        "Acme/chat@1",
        "acme/chat@1/2",
        "acme/../x@1",
        "acme/chat@1\n",
        "a/b/c@1",
        "acme/chat@" + "1" * 65,
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidManifestError):
        split_reference(text)
