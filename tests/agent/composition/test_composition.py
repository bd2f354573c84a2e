"""Splits, cascades and pipelines without a model."""

import struct
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from agent.composition import (
    Replay,
    Split,
    classifier_input,
    limit_sampling,
    select_target,
    try_answer,
)
from agent.errors import WorkerFailedError
from artifact.manifest import Escalation, Pipeline, Share, Target
from runtimes.base import Embeddings, Piece, Sampling, TensorValue, Usage

USAGE = Usage(prompt_tokens=3, generated_tokens=4, prefill_seconds=0.1, decode_seconds=0.2)


class Spoken:
    """A complete generation in lists of one piece."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.usage: Usage | None = None
        self.read = 0
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        for piece in self._pieces:
            self.read += 1
            yield [piece]
        self.usage = USAGE

    async def aclose(self) -> None:
        pass


def said(*words: str, end: str = "stop", logprob: float | None = -0.1) -> Spoken:
    pieces = [Piece(word, 1, None, logprob=logprob) for word in words[:-1]]
    return Spoken([*pieces, Piece(words[-1], 1, end, logprob=logprob)])


@pytest.mark.parametrize("weights", [(1, 9), (1, 1, 1), (5, 3, 2), (7,)])
def test_a_split_gives_each_share_its_part_evenly_spread(weights: tuple[int, ...]) -> None:
    shares = tuple(Share(slot=f"s{n}", weight=weight) for n, weight in enumerate(weights))
    split = Split(shares)
    whole = sum(weights)
    dealt = [split.next() for _ in range(whole * 10)]
    for begin in range(0, len(dealt), whole):
        counts = Counter(share.slot for share in dealt[begin : begin + whole])
        assert [counts[share.slot] for share in shares] == list(weights)


async def test_a_good_answer_stands_and_is_replayed_whole() -> None:
    rules = Escalation(below_mean_log_probability=-1.0, refusals=("i cannot",), max_tokens=8)
    tried = await try_answer(said("All", " is", " well"), rules, 16)
    assert (tried.escalation_reason, tried.usage) == ("", USAGE)
    replay = Replay(tried)
    assert [piece.text async for pieces in replay for piece in pieces] == ["All", " is", " well"]
    assert replay.usage == USAGE


@pytest.mark.parametrize(
    ("rules", "answer", "why"),
    [
        (Escalation(below_mean_log_probability=-1.0), said("Hm", "?", logprob=-1.5), "unsure"),
        (Escalation(below_mean_log_probability=-2.0), said("Hm", "?", logprob=-1.5), ""),
        # Without log-probabilities the rule has no effect.
        (Escalation(below_mean_log_probability=-1.0), said("Hm", "?", logprob=None), ""),
        (Escalation(refusals=("i cannot",)), said("Sorry, I", " Cannot", " help"), "refusal"),
        (Escalation(refusals=("no", "i cannot")), said(*"Well, I CANNOT help"), "refusal"),
        (Escalation(refusals=("STRASSE",)), said("die Stra", "ß", "e"), "refusal"),
        (Escalation(refusals=("i cannot",)), said("I can", " and I do", "not"), ""),
        (Escalation(max_tokens=2), said("on", "and on", end="length"), "too_long"),
        (Escalation(max_tokens=2), said("just", "enough"), ""),
        (Escalation(), said("anything", end="length"), ""),
    ],
)
async def test_each_rule_sends_an_answer_on(rules: Escalation, answer: Spoken, why: str) -> None:
    assert (await try_answer(answer, rules, 16)).escalation_reason == why


async def test_what_the_caller_cut_off_is_not_too_long() -> None:
    rules = Escalation(max_tokens=2)
    assert (await try_answer(said("on", "and on", end="length"), rules, 2)).escalation_reason == ""


async def test_a_refusal_ends_the_attempt_early() -> None:
    answer = said("I", " cannot", " do", " this", " at", " all")
    assert (
        await try_answer(answer, Escalation(refusals=("I cannot",)), 16)
    ).escalation_reason == "refusal"
    assert answer.read == 2


async def test_the_cost_of_a_piece_does_not_grow_with_the_answer() -> None:
    """20 MB, which would take hours if every piece were searched together with all before it."""
    answer = said(*["All is well. " * 32] * 50_000)
    begun = time.process_time()

    class Bounded(Spoken):
        async def __aiter__(self) -> AsyncIterator[list[Piece]]:
            async for pieces in answer:
                yield pieces
                assert time.process_time() - begun < 5

    tried = await try_answer(Bounded([]), Escalation(refusals=("I cannot", "as an AI")), 10**6)
    assert (tried.escalation_reason, len(tried.pieces)) == ("", 50_000)


def test_a_step_generates_no_more_than_its_answer_may_have() -> None:
    wanted = Sampling(max_tokens=100)
    assert limit_sampling(wanted, Escalation(max_tokens=8)).max_tokens == 8
    assert limit_sampling(Sampling(max_tokens=4), Escalation(max_tokens=8)).max_tokens == 4
    assert limit_sampling(wanted, Escalation()).max_tokens == 100
    assert not limit_sampling(wanted, Escalation()).logprobs
    assert limit_sampling(wanted, Escalation(below_mean_log_probability=-1)).logprobs


PIPELINE = Pipeline(
    embed="embed",
    classify="sort",
    input="x",
    output="scores",
    targets=(Target(slot="chat"), Target(slot="code", adapter="python")),
)


def test_a_pipeline_takes_the_target_of_the_highest_score() -> None:
    vector = struct.pack("<2f", 0.6, 0.8)
    given = classifier_input(PIPELINE, Embeddings((vector,), 2, 5))
    assert given == TensorValue("x", "FP32", (1, 2), vector)
    scores = TensorValue("scores", "FP32", (1, 2), struct.pack("<2f", -3.0, -1.0))
    other = TensorValue("label", "INT64", (1,), struct.pack("<q", 0))
    assert select_target(PIPELINE, [other, scores]) == Target(slot="code", adapter="python")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (TensorValue("other", "FP32", (1, 2), bytes(8)), "no output 'scores'"),
        (TensorValue("scores", "FP32", (1, 3), bytes(12)), "3 scores for 2 targets"),
    ],
)
def test_a_classifier_that_does_not_fit_is_told(output: TensorValue, reason: str) -> None:
    with pytest.raises(WorkerFailedError, match=reason) as refused:
        select_target(PIPELINE, [output])
    assert refused.value.advice


async def test_an_attempt_that_ends_early_counts_the_pieces_read() -> None:
    ticks = iter((10.0, 12.0))
    rules = Escalation(refusals=("cannot",))
    tried = await try_answer(said("I", " cannot", " help"), rules, 16, clock=lambda: next(ticks))
    assert (tried.escalation_reason, tried.usage) == ("refusal", Usage(0, 2, 0.0, 2.0))
