"""Digest of everything that a build depends on; equal digests mean equal builds."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from artifact.manifest import canonical_json
from runtimes.base import Scheme
from runtimes.build.request import BuildRequest, VariantRequest
from runtimes.build.source import Source


def digest_of_inputs(
    request: BuildRequest, sources: Sequence[Source], variants: Sequence[VariantRequest]
) -> str:
    """Return the SHA-256 over the files, the request and the engines' versions."""
    document = {
        # Another version may quantize or describe otherwise.
        "flotilla": version("flotilla"),
        "sources": [
            {
                "runtime": source.runtime.name,
                "engine": source.runtime.version() or "",
                "files": _digests(source.files),
            }
            for source in sources
        ],
        "data": _digests(
            {path.name: path for path in (request.evaluation, request.calibration) if path}
        ),
        "model": [
            request.name,
            request.version,
            request.task or "",
            request.context_length,
            request.description,
            msgspec.to_builtins([request.lineage, request.also_from]),
        ],
        "variants": [[one.name, one.runtime, _scheme(one.how)] for one in variants],
        "how": [request.compare, request.search, msgspec.to_builtins(request.goals)],
    }
    return hashlib.sha256(canonical_json(document)).hexdigest()


def _scheme(scheme: Scheme) -> list[Any]:
    data = _digests({scheme.calibration.name: scheme.calibration}) if scheme.calibration else {}
    return [scheme.name, data, sorted(scheme.prune_layers), scheme.sparsity, scheme.block_size]


def _digests(files: Mapping[str, Path]) -> dict[str, str]:
    found = {}
    for name, path in files.items():
        if path.is_file():
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
