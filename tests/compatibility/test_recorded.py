"""Documents that the previous release (0.1.0) wrote are read by this one.

They were recorded with its code: a release, the chunk index and the delta of a file, a join token.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from artifact.chunks import decode_index, encode_index, index_file
from artifact.deltas.restore import restore
from artifact.errors import InvalidManifestError
from artifact.join_token import decode_join_token, encode_join_token
from artifact.manifest import canonical_json, decode_release, encode_release

RECORDED = Path(__file__).parent / "recorded"


def base_and_target() -> tuple[bytes, bytes]:
    """Make the files of which the recorded delta and index are."""
    random = np.random.default_rng(1)
    base = random.bytes(300_000)
    return base, base[:100_000] + random.bytes(1000) + base[101_000:]


def test_a_release_is_the_same_bytes_in_this_release() -> None:
    """Its digest is signed, so a new field must not appear in it."""
    data = (RECORDED / "release.json").read_bytes()
    release = decode_release(data)
    assert (release.reference, release.description) == (
        "acme/assistant@1.0",
        "Recorded with 0.1.0",
    )
    assert encode_release(release) == data


@pytest.mark.parametrize("place", ["release", "variant"])
def test_a_release_of_a_later_version_says_that_this_program_is_too_old(place: str) -> None:
    document = json.loads((RECORDED / "release.json").read_bytes())
    (variant,) = document["components"][0]["model"]["variants"]
    (document if place == "release" else variant)["invented_later"] = 1
    with pytest.raises(InvalidManifestError, match="invented_later") as refused:
        decode_release(canonical_json(document))
    assert refused.value.advice == (
        "It was built with a newer version of Flotilla: update this program first."
    )


def test_a_later_schema_says_so_too() -> None:
    document = json.loads((RECORDED / "release.json").read_bytes()) | {"schema": 2}
    with pytest.raises(InvalidManifestError, match="schema") as refused:
        decode_release(canonical_json(document))
    assert "newer version" in refused.value.advice


def test_a_chunk_index_is_the_same_bytes_in_this_release(tmp_path: Path) -> None:
    data = (RECORDED / "index.bin").read_bytes()
    _, target = base_and_target()
    path = tmp_path / "target"
    path.write_bytes(target)
    assert decode_index(data) == index_file(path)
    assert encode_index(index_file(path)) == data


def test_a_delta_restores_its_target(tmp_path: Path) -> None:
    base, target = base_and_target()
    path = tmp_path / "base"
    path.write_bytes(base)
    restore(path, RECORDED / "delta.bin", tmp_path / "restored")
    assert hashlib.sha256((tmp_path / "restored").read_bytes()).digest() == (
        hashlib.sha256(target).digest()
    )


def test_a_join_token_is_read() -> None:
    text = (RECORDED / "join_token.txt").read_text()
    token = decode_join_token(text)
    assert (token.secret, token.director) == ("s" * 32, "ef" * 32)
    assert encode_join_token(token) == text.strip()
