"""Conversion of schemas to grammars, and refusals with their reason."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import Engine, LoadSpec, Sampling
from runtimes.errors import InvalidInputError
from runtimes.llama_cpp.grammar import check_grammar
from runtimes.llama_cpp.json_schema import to_grammar

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "description": "in years"},
        "tags": {"type": "array", "items": {"enum": ["a", 7, None]}, "minItems": 1, "maxItems": 3},
        "height": {"anyOf": [{"type": "null"}, {"type": "number"}]},
        "born": {"type": "string", "format": "date"},
        "child": {"$ref": "#/$defs/child"},
    },
    "required": ["name", "age", "tags", "born"],
    "$defs": {
        "child": {
            "type": "object",
            "properties": {"grown": {"type": "boolean"}, "child": {"$ref": "#/$defs/child"}},
            "required": ["grown"],
        }
    },
}


@pytest.fixture(scope="module")
def engine(demo_models: Path) -> Iterator[Engine]:
    spec = LoadSpec({"m": demo_models / "base.gguf"}, Task.TEXT_GENERATION, 512, threads=1)
    engine = registry.find("llama_cpp").load(spec)
    yield engine
    engine.close()


def written(engine: Engine, seed: int, **constraint: str) -> tuple[str, str | None]:
    sampling = Sampling(max_tokens=220, temperature=0.9, seed=seed, **constraint)  # type: ignore[arg-type]
    pieces = list(engine.generate("A JSON object:", sampling))
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason


def fits_person(value: Any) -> bool:
    keys = list(value)
    return (
        [key for key in PERSON["properties"] if key in keys] == keys
        and set(PERSON["required"]) <= set(keys)
        and len(value["name"]) <= 12
        and isinstance(value["age"], int)
        and value["age"] >= 0
        and 1 <= len(value["tags"]) <= 3
        and all(tag in ("a", 7, None) for tag in value["tags"])
        and isinstance(value.get("height"), float | int | None)
    )


def test_what_the_model_writes_fits_the_schema(engine: Engine) -> None:
    ended = 0
    for seed in range(8):
        text, reason = written(engine, seed, json_schema=json.dumps(PERSON))
        if reason == "stop":
            ended += 1
            assert fits_person(json.loads(text)), text
    assert ended >= 4


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$ref": "#"}}},
        {"items": {"$ref": "#"}},
        {"type": ["array", "object"], "minItems": 1, "items": {"$ref": "#"}},
        {"anyOf": [{"items": {"$ref": "#"}, "minItems": 1}, {"type": "null"}]},
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {"properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
                "b": {"items": {"$ref": "#/$defs/a"}},
            },
        },
    ],
)
def test_a_schema_that_may_contain_itself_and_need_not_is_a_grammar(schema: Any) -> None:
    assert "root ::= " in to_grammar(json.dumps(schema))


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        ({"type": "object"}, dict),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "integer"}}, dict),
        ({"type": ["null", "boolean"]}, (bool, type(None))),
        ({"prefixItems": [{"type": "string", "maxLength": 3}, {"const": 3}], "items": False}, list),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, list),
        ({"type": "integer", "exclusiveMinimum": 0}, int),
        ({"const": 10**400, "type": "integer"}, int),
        ({"enum": [1, 2.0, None], "type": ["integer", "null"]}, (int, float, type(None))),
        ({"enum": ["gr\u00fc\u00df", 'a"b\\c\n']}, str),
        ({"allOf": [{"$ref": "#/$defs/a~1b"}], "$defs": {"a/b": {"type": "boolean"}}}, bool),
        ({"type": "string", "format": "uuid"}, str),
        ({"title": "anything short", "maxLength": 4, "type": "string"}, str),
    ],
)
def test_schemas_of_every_kind(engine: Engine, schema: Any, kinds: Any) -> None:
    for seed in range(3):
        text, reason = written(engine, seed, json_schema=json.dumps(schema))
        if reason == "stop":
            assert isinstance(json.loads(text), kinds), text


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "is not valid JSON"),
        ('{"type": "nope"}', "type .nope."),
        ('{"not": {}}', "'not'"),
        ('{"properties": {"a": {"pattern": "x"}}}', "'pattern'"),
        ('{"enum": []}', "no alternatives in enum"),
        ('{"minItems": 5, "maxItems": 2, "type": "array"}', "minItems 5 above maxItems 2"),
        ('{"minLength": 100000, "type": "string"}', "minLength"),
        ('{"minimum": 5, "type": "integer"}', "bounds a number by 5"),
        ('{"required": ["a"], "properties": {}}', "not among its properties"),
        ('{"required": [[1]], "properties": {}}', "malformed"),
        ('{"$ref": "#"}', "by itself"),
        ('{"$ref": "https://example.org/schema"}', "outside itself"),
        ('{"$ref": ["#"]}', "malformed"),
        ('{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}', "by itself"),
        ('{"properties": {"a": {"$ref": "#"}}, "required": ["a"]}', "without end"),
        ('{"minItems": 1, "items": {"$ref": "#"}}', "without end"),
        ('{"prefixItems": [{"anyOf": [{"$ref": "#"}]}], "items": false}', "without end"),
        ('{"allOf": [{}, {}]}', "several schemas"),
        ('{"anyOf": [{}], "properties": {}}', "'properties' beside 'anyOf'"),
        ('{"$ref": "#/$defs/a", "maxItems": 1, "$defs": {"a": {}}}', "'maxItems' beside"),
        ('{"enum": ["a", 3], "type": "string"}', "lists 3, which is not of type string"),
        ('{"const": true, "type": "integer"}', "lists true"),
        ('{"type": "string", "format": "date", "maxLength": 3}', "length of a date"),
        ('{"enum": [NaN]}', "malformed"),
        ('{"const": 1e999, "type": "number"}', "malformed"),
        ("[1]", "in place of a schema"),
        ('{"items":' * 40 + "{}" + "}" * 40, "nested deeper than 32"),
        ('{"items":' * 5000 + "{}" + "}" * 5000, "is not valid JSON"),
        (json.dumps({"anyOf": [{"anyOf": [{}] * 999}] * 2}), "more than 1000 parts"),
    ],
)
def test_impossible_and_unsupported_schemas_are_refused_with_the_reason(
    schema: str, reason: str
) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        to_grammar(schema)


KEYWORDS = [
    *("type", "enum", "const", "anyOf", "allOf", "$ref", "properties", "required", "items"),
    *("additionalProperties", "prefixItems", "minItems", "maxItems", "maxLength", "format"),
    *("minimum", "exclusiveMinimum", "title", "$defs", "a"),
]
WORDS = st.sampled_from([*KEYWORDS, "object", "array", "string", "integer", "#", "#/a", "date"])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(KEYWORDS), ANY_JSON, max_size=4))
def test_whatever_comes_as_a_schema_is_a_grammar_or_refused(schema: dict[str, Any]) -> None:
    try:
        grammar = to_grammar(json.dumps(schema))
    except InvalidInputError:
        return
    check_grammar(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        "",
        "x",
        'other ::= "a"',
        'root ::= "a',
        "root ::= [a",
        'root ::= "a"{5,2}',
        'root ::= "a"{2000}',
        'root ::= "' + "a" * 60_000 + '"{1000}',
        "root ::= [" + "ab" * 30_000 + "] {1000}",
        'root ::= "a"{1000}{1000}{1000}',
        'root ::= x {1000} {1000} {1000}\nx ::= "a"',
        "root ::= " + '("a"{1000} | ' * 30 + '"b"' + ")" * 30,
        "root ::= " + "(" * 200_000 + '"a"' + ")" * 200_000,
        'root ::= "a")',
        "root ::= \x00",
        "".join(f'r{n} ::= "a"\n' for n in range(9000)) + 'root ::= "a"',
        "root ::= a\n" + "# filler\n" * 40_000,
    ],
)
def test_grammars_that_would_end_the_process_are_refused_before_it_reads_them(
    grammar: str,
) -> None:
    with pytest.raises(InvalidInputError):
        check_grammar(grammar)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ('root ::= root "a" | "b"', "left recursion"),
        ("root ::= nobody", "refused by llama.cpp"),
        ("root ::= [b-a]", "no token of the model"),
    ],
)
def test_what_llama_cpp_refuses_is_the_callers_mistake(
    engine: Engine, grammar: str, reason: str
) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        written(engine, 1, grammar=grammar)
    assert written(engine, 1, grammar='root ::= "on" | "off"')[0] in {"on", "off"}


def test_a_grammar_that_grows_without_bound_ends_its_text_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtimes.llama_cpp.grammar.MAX_STEP_SECONDS", 0.0)
    with pytest.raises(InvalidInputError, match="ambiguous"):
        written(engine, 1, grammar='root ::= "a" root "b" | "a" root "c" | "a"')
