"""Encoding of a release as canonical bytes."""

import json

import msgspec

from artifact.errors import InvalidManifestError
from artifact.manifest.consistency import check_release
from artifact.manifest.release import Release

MAX_MANIFEST_BYTES = 1 << 20


def encode_release(release: Release) -> bytes:
    """Check that a release is consistent and encode it as canonical bytes."""
    check_release(release)
    return canonical_json(msgspec.to_builtins(release))


def decode_release(data: bytes) -> Release:
    """Decode canonical bytes; raise InvalidManifestError for any other bytes."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidManifestError(
            f"the release manifest has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}",
            advice="Split the release, or shorten its checks.",
        )
    try:
        release = msgspec.json.decode(data, type=Release)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # A field of a later version may change what the release means, so it is not skipped.
        advice = "Build it with `flotilla publish`, which checks it first."
        if "unknown field" in str(error) or "`$.schema`" in str(error):
            advice = "It was built with a newer version of Flotilla: update this program first."
        raise InvalidManifestError(
            f"the release manifest is not valid: {error}", advice=advice
        ) from error
    # The digest of these bytes is signed. Two encodings of one release would have two digests, and
    # duplicate keys or other spellings could mean different things to different parsers.
    if encode_release(release) != data:
        raise InvalidManifestError(
            "the release manifest is not in canonical form",
            advice="Build it with `flotilla publish`, which writes it so.",
        )
    return release


def canonical_json(value: object) -> bytes:
    """Encode JSON with sorted keys, no blanks, UTF-8, no NaN: equal values give equal bytes."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
