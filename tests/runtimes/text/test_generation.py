from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.base import Sampling, Steps
from runtimes.errors import InvalidInputError
from runtimes.text.generation import Chosen, StreamedText, TokenGeneration


class Bytes:
    """A token model that generates the bytes of a text, one per token, then ends."""

    context_length = 100

    def __init__(self, text: bytes) -> None:
        self._text = text
        self.position = 0

    def start(self, tokens: Sequence[int], sampling: Sampling) -> Steps[Chosen]:
        for _ in tokens[1:]:
            yield
        self.position = 0
        return self.step(0)

    def step(self, token: int) -> Chosen:
        if self.position == len(self._text):
            return Chosen(256)
        self.position += 1
        return Chosen(self._text[self.position - 1])

    def piece(self, token: int) -> bytes:
        return bytes([token])

    def is_end(self, token: int) -> bool:
        return token == 256


def run(text: bytes, prompt: Sequence[int] = (1,), **sampling: object) -> tuple[list[str], str]:
    pieces = list(TokenGeneration(Bytes(text), prompt, Sampling(**sampling)))  # type: ignore[arg-type]
    assert all(piece.finish_reason is None for piece in pieces[:-1])
    return [piece.text for piece in pieces], pieces[-1].finish_reason or ""


def test_characters_are_never_split() -> None:
    texts, reason = run("aé€😀".encode(), max_tokens=50)
    assert texts == ["a", "", "é", "", "", "€", "", "", "", "😀", ""]
    assert reason == "stop"


def test_half_a_character_at_the_end_is_dropped() -> None:
    texts, reason = run("a😀".encode(), max_tokens=3)
    assert texts == ["a", "", ""]
    assert reason == "length"


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    texts, _ = run(b"a\xff\xfeb", max_tokens=50)
    assert "".join(texts) == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b"


def test_what_may_become_a_stop_string_is_held_back_until_it_is_certain() -> None:
    texts, reason = run(b"one STOX two STOP three", max_tokens=50, stop=("STOP",))
    assert texts[4:8] == ["", "", "", "STOX"]
    assert "".join(texts) == "one STOX two "
    assert reason == "stop"


def test_the_first_of_several_stop_strings_wins() -> None:
    texts, _ = run(b"abcdef", max_tokens=50, stop=("ef", "cd"))
    assert "".join(texts) == "ab"


def test_a_model_that_ends_gives_back_what_was_held() -> None:
    texts, reason = run(b"so ST", max_tokens=50, stop=("STOP",))
    assert "".join(texts) == "so ST"
    assert reason == "stop"


@given(
    st.text(alphabet="ab€", max_size=30),
    st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), max_size=3),
)
def test_streaming_says_what_cutting_the_whole_text_would(text: str, stops: list[str]) -> None:
    stream = StreamedText(stops)
    said = ""
    for byte in text.encode():
        said += stream.feed(bytes([byte]))
        if stream.stopped:
            break
    said += stream.rest()
    # The stop string that ends first wins, not the one that begins first.
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    expected = text
    if ends:
        seen = text[: min(ends)]
        expected = seen[: min(seen.index(stop) for stop in stops if stop in seen)]
    assert said == expected


def test_seconds_are_those_spent_inside() -> None:
    """Exclude the time of a slow reader from decode time."""
    ticks = count()
    generation = TokenGeneration(
        Bytes(b"abcdef"), [1, 2, 3], Sampling(max_tokens=4), clock=lambda: next(ticks) * 1.0
    )
    for _ in generation:
        next(ticks)
        next(ticks)
    usage = generation.usage
    assert (usage.prompt_tokens, usage.generated_tokens) == (3, 4)
    assert (usage.prefill_seconds, usage.decode_seconds) == (3.0, 3.0)


def test_the_model_is_not_asked_for_more_than_is_wanted() -> None:
    model = Bytes(b"abcdef")
    list(TokenGeneration(model, [1], Sampling(max_tokens=3)))
    assert model.position == 3


def test_prompt_and_answer_share_the_context() -> None:
    texts, reason = run(b"x" * 200, prompt=[1] * 90, max_tokens=50)
    assert (len(texts), reason) == (10, "length")
    with pytest.raises(InvalidInputError, match="100 tokens"):
        run(b"x", prompt=[1] * 100)
    with pytest.raises(InvalidInputError, match="empty"):
        run(b"x", prompt=[])
