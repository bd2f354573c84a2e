"""Request fields: one that would change the answer is honoured or refused by name."""

from typing import Any

import msgspec
import pytest
from gateway_box import Box

from artifact.manifest import Task
from runtimes.fake import FakeModel

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

# Fields of OpenAI, llama.cpp's server, vLLM and others, and one of no server.
REFUSED: dict[str, Any] = {
    "tool_choice": "required",
    "tools": [TOOL],
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "logit_bias": {"1": 5},
    "n": 2,
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy"},
    "reasoning_effort": "low",
    "verbosity": "low",
    "web_search_options": {},
    "min_tokens": 5,
    "ignore_eos": True,
    "chat_template_kwargs": {"enable_thinking": False},
    "chat_template": "{{ messages }}",
    "repetition_penalty": 1.2,
    "length_penalty": 2.0,
    "use_beam_search": True,
    "guided_json": {"type": "object"},
    "guided_regex": "[0-9]+",
    "guided_choice": ["a", "b"],
    "guided_grammar": "root ::= x",
    "structured_outputs": {"choice": ["a"]},
    "bad_words": ["a"],
    "allowed_token_ids": [1],
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "prompt_logprobs": 1,
    "truncate_prompt_tokens": 5,
    "add_generation_prompt": False,
    "continue_final_message": True,
    "documents": [{"text": "x"}],
    "n_predict": 5,
    "typical_p": 0.5,
    "mirostat": 2,
    "dry_multiplier": 0.8,
    "xtc_probability": 0.5,
    "dynatemp_range": 0.5,
    "samplers": ["top_k"],
    "json_schema": {"type": "object"},
    "lora": [{"id": 0, "scale": 1.0}],
    "a_field_that_no_server_knows": 1,
}

# Each has a value that leaves the answer as it is; clients send many of them by default.
OFF: dict[str, Any] = {
    "tool_choice": "none",
    "tools": [],
    "parallel_tool_calls": True,
    "functions": None,
    "function_call": "auto",
    "logit_bias": {},
    "n": 1,
    "modalities": ["text"],
    "min_tokens": 0,
    "ignore_eos": False,
    "chat_template_kwargs": {},
    "repetition_penalty": 1.0,
    "guided_json": None,
    "skip_special_tokens": True,
    "typical_p": 1.0,
    "mirostat": 0,
    "n_predict": None,
    "a_field_that_no_server_knows": None,
}

HARMLESS: dict[str, Any] = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "safety_identifier": "me",
    "prompt_cache_key": "k",
    "request_id": "r",
    "priority": 1,
}


async def chat(box: Box, **fields: Any) -> tuple[int, Any]:
    body = {"model": "chat", "messages": MESSAGES, **fields}
    response = await box.client.post("/v1/chat/completions", json=body)
    return response.status_code, response.json()


@pytest.mark.parametrize("field", REFUSED)
async def test_a_field_that_would_change_the_answer_is_refused_by_name(
    box: Box, field: str
) -> None:
    await box.deploy(chat=FakeModel())
    value = REFUSED[field]
    status, body = await chat(box, **{field: value})
    assert (status, body["error"]["param"]) == (400, field), body
    assert body["error"]["code"] == "unsupported_parameter"
    assert field in body["error"]["message"]
    completion = await box.complete(**{field: value})
    assert (completion.status_code, completion.json()["error"]["param"]) == (400, field)


async def test_fields_that_leave_the_answer_as_it_is_are_taken(box: Box) -> None:
    await box.deploy(chat=FakeModel())
    for field, value in (*OFF.items(), *HARMLESS.items()):
        status, body = await chat(box, **{field: value})
        assert status == 200, (field, body)
        assert (await box.complete(**{field: value})).status_code == 200, field


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"tool_calls": [{"id": "1"}]}, "tool_calls"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"name": "ann"}, "name"),
        ({"prefix": True}, "prefix"),
    ],
)
async def test_a_field_of_a_message_is_refused_by_name(
    box: Box, message: dict[str, Any], named: str
) -> None:
    await box.deploy(chat=FakeModel())
    turns = [{"role": "assistant", "content": "hi", **message}, *MESSAGES]
    status, body = await chat(box, messages=turns)
    assert (status, body["error"]["param"]) == (400, "messages")
    assert named in body["error"]["message"]


async def test_an_answer_of_openai_may_be_sent_back_as_a_message(box: Box) -> None:
    await box.deploy(chat=FakeModel())
    answer = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    assert (await chat(box, messages=[*MESSAGES, answer, *MESSAGES]))[0] == 200


async def test_a_refused_name_is_cut_and_escaped(box: Box) -> None:
    await box.deploy(chat=FakeModel())
    status, body = await chat(box, **{"\x1b" + "x" * 5000: 1})
    assert status == 400
    assert len(body["error"]["message"]) < 400
    assert "\x1b" not in body["error"]["message"]


async def test_an_embedding_request_is_read_as_strictly(box: Box) -> None:
    await box.deploy(embed=FakeModel(task=Task.EMBEDDING))
    body = {"model": "embed", "input": "text"}
    for field in ("input_type", "truncate_prompt_tokens", "a_field_that_no_server_knows"):
        answer = await box.client.post("/v1/embeddings", json={**body, field: 5})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    answer = await box.client.post("/v1/embeddings", json={**body, "user": "me"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"parameters": {"sequence_id": 1}}, "sequence_id"),
        ({"outputs": [{"name": "output", "parameters": {"classification": 2}}]}, "classification"),
        (
            {"outputs": [{"name": "output", "parameters": {"shared_memory_region": "x"}}]},
            "shared_memory_region",
        ),
        ({"a_field_that_no_server_knows": 1}, "a_field_that_no_server_knows"),
    ],
)
async def test_a_parameter_of_a_tensor_request_is_refused_by_name(
    box: Box, change: dict[str, Any], named: str
) -> None:
    await box.deploy(digits=FakeModel(task=Task.TENSOR))
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    answer = await box.client.post(
        "/v2/models/digits/infer",
        content=msgspec.json.encode({"inputs": [tensor], **change}),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    assert named in answer.json()["error"]


async def test_a_stop_token_ends_the_text_and_is_left_out(box: Box) -> None:
    # The fake model's tokens are bytes.
    await box.deploy(chat=FakeModel(reply="abcd"))
    answer = (await box.complete(max_tokens=10, temperature=0, stop_token_ids=[ord("c")])).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    for bad in ([-1], ["c"], list(range(65))):
        refused = await box.complete(stop_token_ids=bad)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stop_token_ids")
