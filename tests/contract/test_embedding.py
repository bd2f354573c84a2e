"""Contract of engines that embed texts."""

import math
import struct

import pytest
from steps import in_turn

from runtimes.base import Embeddings, Engine, Sampling, TensorValue
from runtimes.errors import InvalidInputError, UnsupportedModelError
from runtimes.text.steps import whole


def values(embeddings: Embeddings) -> list[tuple[float, ...]]:
    form = f"<{embeddings.dimensions}f"
    return [struct.unpack(form, vector) for vector in embeddings.vectors]


def test_every_text_gets_a_vector_of_length_one_in_order(encoder: Engine) -> None:
    texts = ["one text", "another, much longer text", "one text"]
    together = values(whole(encoder.embed(texts)))
    assert [math.hypot(*vector) for vector in together] == pytest.approx([1, 1, 1], abs=1e-5)
    for text, vector in zip(texts, together, strict=True):
        assert values(whole(encoder.embed([text])))[0] == pytest.approx(vector, abs=1e-5)
    assert together[0] != pytest.approx(together[1], abs=1e-3)


def test_many_texts_take_many_steps_in_turn_with_others(encoder: Engine) -> None:
    assert encoder.parallel > 1
    many = [f"a text of {'many ' * 20}words, number {at}" for at in range(12)]
    alone = whole(encoder.embed(many)), whole(encoder.embed(["a text"]))
    assert in_turn(encoder.embed(many), encoder.embed(["a text"])) == list(alone)
    assert sum(1 for _ in encoder.embed(many)) >= len(many) - 1
    begun = encoder.embed(many)
    next(begun)
    begun.close()
    assert whole(encoder.embed(["a text"])) == alone[1]


def test_tokens_are_counted(encoder: Engine) -> None:
    one, two = whole(encoder.embed(["a text"])), whole(encoder.embed(["a text", "a text"]))
    assert two.prompt_tokens == 2 * one.prompt_tokens > 0


@pytest.mark.parametrize("texts", [[], ["fine", ""], ["\udcff"]])
def test_nothing_and_half_characters_are_refused(encoder: Engine, texts: list[str]) -> None:
    with pytest.raises(InvalidInputError) as refused:
        whole(encoder.embed(texts))
    assert refused.value.advice


def test_an_encoder_does_nothing_else(encoder: Engine) -> None:
    assert encoder.tensors() == ((), ())
    assert encoder.parallel >= 1
    assert encoder.memory_bytes() > 0
    with pytest.raises(UnsupportedModelError):
        encoder.generate("text", Sampling())
    with pytest.raises(UnsupportedModelError):
        whole(encoder.score("a text"))
    with pytest.raises(UnsupportedModelError):
        encoder.infer([TensorValue("x", "FP32", (1,), b"\0\0\0\0")])


def test_other_models_do_not_embed(text_engine: Engine, tensor_engine: Engine) -> None:
    for other in (text_engine, tensor_engine):
        with pytest.raises(UnsupportedModelError):
            whole(other.embed(["a text"]))
