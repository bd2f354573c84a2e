"""Splits, cascades and pipelines over real sockets with real workers."""

from collections import Counter
from typing import Any

import msgspec
import pytest
from gateway_box import Box

from artifact.manifest import Cascade, Escalation, Pipeline, Route, Share, Target, Task
from runtimes.fake import EMBEDDING_DIMENSIONS, FakeModel, Faults

REFUSES = FakeModel(reply="I cannot. ")
KNOWS = FakeModel(reply="42. ")


def cascade(*slots: str, **rules: Any) -> Route:
    steps = tuple(Target(slot=slot) for slot in slots)
    return Route(name="answer", cascade=Cascade(steps=steps, escalate=Escalation(**rules)))


async def ask(box: Box, **fields: object) -> tuple[int, str]:
    response = await box.complete(model="answer", max_tokens=12, temperature=0, **fields)
    body = response.json()
    return response.status_code, body["choices"][0]["text"] if "choices" in body else str(body)


def told(box: Box) -> dict[str, tuple[int, int, int]]:
    """Return requests, escalations and errors of the route by slot."""
    windows = box.collector.roll([])
    assert {window.labels.route for window in windows} == {"answer"}
    return {w.labels.slot: (w.requests, w.escalations, w.errors) for w in windows}


async def test_a_split_divides_requests_by_weight(box: Box) -> None:
    shares = (Share(slot="old", weight=3), Share(slot="new", weight=1))
    await box.deploy(old=REFUSES, new=KNOWS, routes=(Route(name="answer", split=shares),))
    answers = Counter([(await ask(box))[1] for _ in range(8)])
    assert answers == {"I cannot. I ": 6, "42. 42. 42. ": 2}
    assert told(box) == {"old": (6, 0, 0), "new": (2, 0, 0)}


@pytest.mark.parametrize(
    ("small", "rules"),
    [
        (REFUSES, {"refusals": ["i CANNOT"]}),
        (FakeModel(reply="and so on "), {"max_tokens": 4}),
        (FakeModel(reply="well "), {"below_mean_log_probability": -0.4}),
    ],
    ids=["refusal", "too long", "unsure"],
)
async def test_what_the_small_model_cannot_the_large_one_answers(
    box: Box, small: FakeModel, rules: dict[str, Any]
) -> None:
    await box.deploy(small=small, large=KNOWS, routes=(cascade("small", "large", **rules),))
    assert await ask(box) == (200, "42. 42. 42. ")
    assert told(box) == {"small": (1, 1, 0), "large": (1, 0, 0)}


async def test_what_the_small_model_can_costs_the_large_one_nothing(box: Box) -> None:
    route = cascade("small", "large", refusals=["never"], below_mean_log_probability=-0.6)
    await box.deploy(small=FakeModel(reply="fine "), large=KNOWS, routes=(route,))
    assert await ask(box) == (200, "fine fine fi")
    assert told(box) == {"small": (1, 0, 0)}


async def test_a_stream_of_a_cascade_is_whole_whichever_step_answers(box: Box) -> None:
    for small, text in ((FakeModel(reply="fine "), "fine fine fi"), (REFUSES, "42. 42. 42. ")):
        await box.deploy(
            small=small, large=KNOWS, routes=(cascade("small", "large", refusals=["cannot"]),)
        )
        response = await box.complete(model="answer", max_tokens=12, temperature=0, stream=True)
        *events, end = [line for line in response.text.split("\n\n") if line]
        assert end == "data: [DONE]"
        chunks = [msgspec.json.decode(event.removeprefix("data: ")) for event in events]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_a_small_model_that_dies_or_is_too_small_is_passed_over(box: Box) -> None:
    crashes = FakeModel(faults=Faults(crash_after_tokens=1))
    narrow = FakeModel(context_length=8)
    route = cascade("crashes", "narrow", "large", max_tokens=64)
    await box.deploy(crashes=crashes, narrow=narrow, large=KNOWS, routes=(route,))
    assert await ask(box, prompt="more than eight bytes") == (200, "42. 42. 42. ")
    assert told(box) == {"crashes": (1, 0, 1), "narrow": (1, 0, 0), "large": (1, 0, 0)}


async def test_when_the_last_step_fails_the_caller_is_told(box: Box) -> None:
    narrow = FakeModel(context_length=8)
    await box.deploy(small=narrow, large=narrow, routes=(cascade("small", "large", max_tokens=64),))
    status, body = await ask(box, prompt="more than eight bytes")
    assert status == 400
    assert "context holds 8" in body


async def test_a_pipeline_sends_each_text_to_the_model_for_its_kind(box: Box) -> None:
    # The fake embedding counts letters and the fake classifier doubles: the most frequent wins.
    kinds = {ord("m") % EMBEDDING_DIMENSIONS: "maths"}
    targets = tuple(
        Target(slot=kinds.get(letter, "chat")) for letter in range(EMBEDDING_DIMENSIONS)
    )
    pipeline = Pipeline(
        embed="embed", classify="sort", input="input", output="output", targets=targets
    )
    await box.deploy(
        embed=FakeModel(task=Task.EMBEDDING),
        sort=FakeModel(task=Task.CLASSIFICATION, width=EMBEDDING_DIMENSIONS),
        maths=KNOWS,
        chat=FakeModel(reply="hi. "),
        routes=(Route(name="answer", pipeline=pipeline),),
    )
    assert await ask(box, prompt="mmmm, a sum") == (200, "42. 42. 42. ")
    conversation = [{"role": "system", "content": "mmmm"}, {"role": "user", "content": "oooo!"}]
    chat = await box.client.post(
        "/v1/chat/completions",
        json={"model": "answer", "messages": conversation, "max_tokens": 4, "temperature": 0},
    )
    assert chat.json()["choices"][0]["message"]["content"] == "hi. "
    assert told(box) == {
        "embed": (2, 0, 0),
        "sort": (2, 0, 0),
        "maths": (1, 0, 0),
        "chat": (1, 0, 0),
    }


async def test_a_composed_route_is_listed_with_what_it_is_made_of(box: Box) -> None:
    await box.deploy(small=REFUSES, large=KNOWS, routes=(cascade("small", "large", max_tokens=4),))
    listed = {m["id"]: m["flotilla"] for m in (await box.client.get("/v1/models")).json()["data"]}
    assert listed["answer"]["kind"] == "cascade"
    assert [target["slot"] for target in listed["answer"]["targets"]] == ["small", "large"]
    assert listed["small"]["slot"] == "small"


async def test_metrics_tell_apart_what_came_through_which_route(box: Box) -> None:
    await box.deploy(small=REFUSES, large=KNOWS, routes=(cascade("small", "large", max_tokens=9),))
    await ask(box)
    await box.complete(model="large", max_tokens=4)
    lines = (await box.client.get("/metrics")).text.splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert sorted(series) == sorted(set(series))
    counted = [line for line in series if line.startswith("flotilla_requests_total{")]
    assert sum('slot="large"' in line and 'outcome="ok"' in line for line in counted) == 2
    assert any('slot="large"' in line and 'route="answer"' in line for line in counted)


async def test_a_composed_route_takes_no_tensors(box: Box) -> None:
    await box.deploy(small=REFUSES, large=KNOWS, routes=(cascade("small", "large", max_tokens=4),))
    image = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    response = await box.client.post("/v2/models/answer/infer", json={"inputs": [image]})
    assert response.status_code == 400
    assert "/v1/completions" in response.json()["error"]
