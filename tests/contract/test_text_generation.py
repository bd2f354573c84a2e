"""Contract of text engines."""

import math

import pytest

from runtimes.base import Engine, Piece, Sampling, TensorValue
from runtimes.errors import InvalidInputError, UnsupportedModelError
from runtimes.text.steps import whole

PROMPT = "The import statement"


def generate(engine: Engine, prompt: str, sampling: Sampling) -> tuple[str, list[Piece]]:
    pieces = list(engine.generate(prompt, sampling))
    return "".join(piece.text for piece in pieces), pieces


def test_one_piece_per_token_and_a_reason_on_the_last_alone(text_engine: Engine) -> None:
    _, pieces = generate(text_engine, PROMPT, Sampling(max_tokens=12))
    assert len(pieces) == 12
    assert [piece.finish_reason for piece in pieces] == [None] * 11 + ["length"]


def test_usage_adds_up(text_engine: Engine) -> None:
    generation = text_engine.generate(PROMPT, Sampling(max_tokens=12))
    pieces = list(generation)
    usage = generation.usage
    assert usage.generated_tokens == len([p for p in pieces if p.token is not None]) == 12
    assert usage.prompt_tokens > 0
    assert usage.prefill_seconds > 0
    assert usage.decode_seconds > 0


def test_usage_of_a_generation_closed_early_counts_what_was_done(text_engine: Engine) -> None:
    generation = text_engine.generate(PROMPT, Sampling(max_tokens=50))
    next(generation)
    next(generation)
    generation.close()
    generation.close()
    assert generation.usage.generated_tokens == 2
    assert next(iter(generation), None) is None


def test_a_token_of_stop_token_ids_ends_the_text_and_is_left_out(text_engine: Engine) -> None:
    text, pieces = generate(text_engine, PROMPT, Sampling(max_tokens=12))
    stop = pieces[5].token
    assert stop is not None
    first = next(number for number, piece in enumerate(pieces) if piece.token == stop)
    stopped, shorter = generate(
        text_engine, PROMPT, Sampling(max_tokens=12, stop_token_ids=(stop,))
    )
    assert [piece.token for piece in shorter] == [piece.token for piece in pieces[: first + 1]]
    assert shorter[-1].finish_reason == "stop"
    assert text.startswith(stopped)
    assert stopped == "".join(piece.text for piece in pieces[:first])


def test_a_prompt_is_cached_for_the_same_salt_only(text_engine: Engine) -> None:
    prompt = (
        "A prompt that is long enough to be worth keeping, for a later request that begins alike"
    )

    def cached(salt: str) -> int:
        generation = text_engine.generate(prompt, Sampling(max_tokens=2, cache_salt=salt))
        list(generation)
        return generation.usage.cached_prompt_tokens

    first, other, again = cached("a"), cached("b"), cached("a")
    assert (first, other) == (0, 0)
    # An engine without a prefix cache shares with no request at all.
    assert again == 0 or again > 32


def test_greedy_is_the_same_every_time_and_ignores_what_came_before(text_engine: Engine) -> None:
    first = generate(text_engine, PROMPT, Sampling(max_tokens=16))
    generate(text_engine, "Something else entirely, and rather longer.", Sampling(max_tokens=5))
    assert generate(text_engine, PROMPT, Sampling(max_tokens=16)) == first


def test_a_seed_makes_sampling_repeatable(text_engine: Engine) -> None:
    def sample(seed: int) -> str:
        return generate(
            text_engine, PROMPT, Sampling(max_tokens=24, temperature=1.0, top_p=0.9, seed=seed)
        )[0]

    texts = {sample(seed) for seed in range(6)}
    assert sample(3) == sample(3)
    assert len(texts) > 1


def test_a_stop_string_ends_the_text_and_never_shows_a_part_of_itself(text_engine: Engine) -> None:
    whole, _ = generate(text_engine, PROMPT, Sampling(max_tokens=40))
    stop = whole[8:14]
    cut, pieces = generate(text_engine, PROMPT, Sampling(max_tokens=40, stop=("never", stop)))
    assert cut == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"


def test_text_held_back_for_a_stop_string_that_never_comes_is_given_at_the_end(
    text_engine: Engine,
) -> None:
    whole, _ = generate(text_engine, PROMPT, Sampling(max_tokens=20))
    nearly = whole[-3:] + "\N{SNOWMAN}"
    kept, pieces = generate(text_engine, PROMPT, Sampling(max_tokens=20, stop=(nearly,)))
    assert kept == whole
    assert pieces[-1].finish_reason == "length"


def test_several_at_once_give_what_each_gives_alone(text_engine: Engine) -> None:
    """Compare on these models; in general, two nearly equal tokens may change places."""
    count = min(text_engine.parallel, 3)
    prompts = [f"{PROMPT} number {n}" for n in range(count)]
    alone = [generate(text_engine, prompt, Sampling(max_tokens=12))[1] for prompt in prompts]
    running = [text_engine.generate(prompt, Sampling(max_tokens=12)) for prompt in prompts]
    together: list[list[Piece]] = [[] for _ in prompts]
    for _ in range(12):
        for pieces, generation in zip(together, running, strict=True):
            pieces.append(next(generation))
    assert together == alone
    assert all(next(generation, None) is None for generation in running)


def test_polling_gives_the_same_pieces(text_engine: Engine) -> None:
    _, expected = generate(text_engine, PROMPT, Sampling(max_tokens=6))
    generation = text_engine.generate(PROMPT, Sampling(max_tokens=6))
    pieces: list[Piece] = []
    while len(pieces) < len(expected):
        if (piece := generation.poll()) is not None:
            pieces.append(piece)
    assert pieces == expected
    with pytest.raises(StopIteration):
        generation.poll()


def test_log_probabilities_come_when_asked_for(text_engine: Engine) -> None:
    _, silent = generate(text_engine, PROMPT, Sampling(max_tokens=6))
    _, pieces = generate(text_engine, PROMPT, Sampling(max_tokens=6, logprobs=True))
    assert [piece.logprob for piece in silent] == [None] * 6
    assert all(piece.logprob is not None and -20 < piece.logprob < 0 for piece in pieces)
    assert [piece.token for piece in pieces] == [piece.token for piece in silent]


def test_an_adapter_that_is_not_there_is_refused(text_engine: Engine) -> None:
    with pytest.raises(InvalidInputError, match="no adapter 'nobody-has'"):
        text_engine.generate(PROMPT, Sampling(adapter="nobody-has"))


def test_a_grammar_is_held_or_refused(text_engine: Engine) -> None:
    sampling = Sampling(max_tokens=30, json_schema='{"enum": ["yes", "no"]}')
    try:
        text, pieces = generate(text_engine, PROMPT, sampling)
    except InvalidInputError as error:
        assert "grammar" in str(error)  # noqa: PT017 - an engine may do either
    else:
        assert text in {'"yes"', '"no"'}
        assert pieces[-1].finish_reason == "stop"


def test_a_full_context_ends_the_text(text_engine: Engine) -> None:
    generation = text_engine.generate(PROMPT, Sampling(max_tokens=10_000))
    pieces = list(generation)
    assert pieces[-1].finish_reason in {"length", "stop"}
    assert generation.usage.prompt_tokens + generation.usage.generated_tokens <= 128


def test_a_prompt_that_fills_the_context_is_refused_at_once(text_engine: Engine) -> None:
    with pytest.raises(InvalidInputError, match="context holds 128"):
        text_engine.generate("word " * 400, Sampling())


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=0),
        Sampling(temperature=-0.1),
        Sampling(temperature=math.nan),
        Sampling(top_p=0),
        Sampling(top_p=1.1),
        Sampling(top_k=-1),
        Sampling(min_p=1.5),
        Sampling(repeat_penalty=0),
        Sampling(presence_penalty=-3),
        Sampling(frequency_penalty=math.inf),
        Sampling(grammar='root ::= "a"', json_schema="{}"),
        Sampling(json_schema=" " * 70_000),
        Sampling(stop=("",)),
        Sampling(stop=("x",) * 17),
    ],
)
def test_sampling_outside_its_bounds_is_refused(text_engine: Engine, sampling: Sampling) -> None:
    with pytest.raises(InvalidInputError):
        text_engine.generate(PROMPT, sampling)


def test_text_survives_in_any_script(text_engine: Engine) -> None:
    text, _ = generate(text_engine, "grüß Gott, 世界 \N{ROCKET}\0", Sampling(max_tokens=16))
    assert text.encode().decode() == text


@pytest.mark.parametrize("text", ["half \ud83d a character", "x" * ((1 << 22) + 1)])
def test_text_that_no_tokenizer_should_get_is_refused(text_engine: Engine, text: str) -> None:
    with pytest.raises(InvalidInputError):
        text_engine.generate(text, Sampling())
    with pytest.raises(InvalidInputError):
        whole(text_engine.score(text))


def test_a_conversation_becomes_a_prompt_with_every_message(text_engine: Engine) -> None:
    prompt = text_engine.render_chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello {{ x }}"}]
    )
    assert "Be brief." in prompt
    assert "Hello {{ x }}" in prompt
    assert generate(text_engine, prompt, Sampling(max_tokens=4))[1]


def test_a_score_is_a_likelihood_over_all_tokens_but_the_first(text_engine: Engine) -> None:
    score = whole(text_engine.score("The import statement searches for the named module. " * 8))
    assert score.tokens > 128
    perplexity = math.exp(score.negative_log_likelihood / score.tokens)
    assert 1 <= perplexity < 100
    assert whole(text_engine.score("The import statement searches")).tokens < score.tokens


def test_a_text_without_a_token_to_predict_is_refused(text_engine: Engine) -> None:
    with pytest.raises(InvalidInputError):
        whole(text_engine.score(""))


def test_tensors_are_not_what_a_text_model_takes(text_engine: Engine) -> None:
    assert text_engine.tensors() == ((), ())
    with pytest.raises(UnsupportedModelError):
        text_engine.infer([TensorValue("x", "FP32", (1,), b"\0\0\0\0")])


def test_memory_is_reported(text_engine: Engine) -> None:
    assert text_engine.memory_bytes() > 1 << 19
