"""A join token is decoded as it was encoded; any other text is refused."""

import pytest

from artifact.errors import InvalidJoinTokenError
from artifact.join_token import JoinToken, decode_join_token, encode_join_token

TOKEN = JoinToken(secret="s" * 43, ca="a" * 64, root="b" * 64, director="c" * 64)


def test_decoding_gives_back_what_was_encoded() -> None:
    text = encode_join_token(TOKEN)
    assert text.startswith("flt1.")
    assert "=" not in text
    assert decode_join_token(f"  {text}\n") == TOKEN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "flt1.",
        "flt1.???",
        "flt1.e30",
        "sometext",
        encode_join_token(TOKEN)[:-3],
        encode_join_token(TOKEN) + "A" * 1024,
        "flt1." + "A" * 900,
    ],
)
def test_anything_else_is_refused_with_advice(text: str) -> None:
    with pytest.raises(InvalidJoinTokenError) as refused:
        decode_join_token(text)
    assert "flotilla token create" in refused.value.advice


def test_the_refusal_never_repeats_the_secret() -> None:
    damaged = encode_join_token(TOKEN)[:-3]
    with pytest.raises(InvalidJoinTokenError) as refused:
        decode_join_token(damaged)
    assert damaged[6:30] not in str(refused.value)
