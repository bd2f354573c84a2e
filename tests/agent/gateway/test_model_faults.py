"""A failure that no other request would avoid is an error of the model, not of its caller."""

from typing import Any

import pytest
from gateway_box import Box

from artifact.manifest import Pipeline, Route, Target, Task
from runtimes.fake import EMBEDDING_DIMENSIONS, FakeModel

BROKEN = [
    "{% no_such_tag %}",
    "{{ messages[0].content.no_such_method() }}",
    "{{ raise_exception('never') }}",
    "{{ messages[0].content + 5 }}",
]
# Refuses a conversation that begins with the assistant, as many templates do.
PICKY = (
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('begin with the user') }}"
    "{% endif %}{{ messages[-1].content }}"
)


async def chat(box: Box, *roles: str) -> Any:
    turns = [{"role": role, "content": "hi"} for role in roles or ("user",)]
    return await box.client.post(
        "/v1/chat/completions", json={"model": "chat", "messages": turns, "max_tokens": 4}
    )


def counted(box: Box) -> dict[str, tuple[int, int]]:
    return {w.slot: (w.requests, w.errors) for w in box.collector.roll([])}


@pytest.mark.parametrize("template", BROKEN)
async def test_a_template_that_fails_every_conversation_is_an_error_of_the_model(
    box: Box, template: str
) -> None:
    await box.deploy(chat=FakeModel(chat_template=template))
    for _ in range(2):
        answer = await chat(box)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "model_failed"
        assert "chat template" in answer.json()["error"]["message"]
    assert counted(box) == {"chat": (2, 2)}
    # A plain prompt needs no template.
    assert (await box.complete(model="chat")).status_code == 200


async def test_a_conversation_that_a_working_template_refuses_is_the_callers(box: Box) -> None:
    await box.deploy(chat=FakeModel(chat_template=PICKY))
    assert (await chat(box, "assistant", "user")).status_code == 400
    assert (await chat(box, "user")).status_code == 200
    assert counted(box) == {"chat": (2, 0)}


@pytest.mark.parametrize(
    ("width", "targets"), [(EMBEDDING_DIMENSIONS, 3), (4, EMBEDDING_DIMENSIONS)]
)
async def test_a_pipeline_that_does_not_fit_its_models_is_an_error_of_the_release(
    box: Box, width: int, targets: int
) -> None:
    """Either the classifier has no score per target, or it does not take the embedding."""
    pipeline = Pipeline(
        embed="embed",
        classify="sort",
        input="input",
        output="output",
        targets=(Target(slot="chat"),) * targets,
    )
    await box.deploy(
        embed=FakeModel(task=Task.EMBEDDING),
        sort=FakeModel(task=Task.CLASSIFICATION, width=width),
        chat=FakeModel(),
        routes=(Route(name="answer", pipeline=pipeline),),
    )
    answer = await box.complete(model="answer")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_failed")
    assert counted(box) == {"embed": (1, 0), "sort": (1, 1)}
