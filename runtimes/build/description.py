"""Write the manifest of a model version, checked against its schema and rules."""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from artifact.chunks import encode_index
from artifact.errors import InvalidManifestError
from artifact.manifest import File, ModelVersion, Task, Variant, check_lineage
from runtimes.base import Inspection, Runtime, Scheme
from runtimes.build.chunk_index import index_files
from runtimes.build.request import BuildRequest
from runtimes.errors import BuildError
from runtimes.evaluation.quality import dataset_name


def described(request: BuildRequest, task: Task, variants: Sequence[Variant]) -> ModelVersion:
    """Return a valid model version; raise BuildError."""
    model = ModelVersion(
        name=request.name,
        version=request.version,
        task=task,
        variants=tuple(variants),
        lineage=request.lineage,
        also_from=request.also_from,
        description=request.description,
    )
    # Structs are not checked when they are made: decoding applies the manifest's bounds.
    try:
        model = msgspec.json.decode(msgspec.json.encode(model), type=ModelVersion)
        check_lineage(model)
    except InvalidManifestError as error:
        raise BuildError(str(error), advice=error.advice) from error
    except msgspec.ValidationError as error:
        raise BuildError(
            f"the model version's description is invalid: {error}",
            advice="Write names as lower-case publisher/name, labels in at most 63 characters.",
        ) from error
    return model


def check_names(request: BuildRequest) -> None:
    """Raise early the errors that ``described`` would raise after hours of work."""
    names = [variant.name for variant in request.variants]
    if len(set(names)) != len(names):
        raise BuildError(f"the variants are {names}", advice="Give each its own name.")
    described(request, request.task or Task.TENSOR, [_probe(name) for name in names or ["x"]])


def described_files(runtime: Runtime, paths: Sequence[Path]) -> tuple[File, ...]:
    indexes = index_files(runtime, {path.name: path for path in paths})
    return tuple(
        File(
            name=name,
            size=index.size,
            sha256=index.sha256.hex(),
            index=hashlib.sha256(encode_index(index)).hexdigest(),
        )
        for name, index in indexes.items()
    )


def context_bytes(runtime: Runtime, inspection: Inspection, size: int, context_length: int) -> int:
    """Return the least bytes per token of context: the slope that a smaller context always saves.

    The estimate is not linear, because buffers grow with the context only up to one pass, so the
    smallest slope to several shorter contexts is taken.
    """
    whole = runtime.estimate_memory(inspection, size, context_length)
    return min(
        (
            (whole - runtime.estimate_memory(inspection, size, shorter))
            // (context_length - shorter)
            for shorter in (1, context_length // 4, context_length // 2, context_length - 1)
            if 0 < shorter < context_length
        ),
        default=0,
    )


def recipe_of(scheme: Scheme) -> str:
    """Describe a scheme's options; return an empty string if it has none."""
    parts = []
    if scheme.calibration is not None:
        with contextlib.suppress(OSError):
            parts.append(f"calibrated on {dataset_name(scheme.calibration)}")
    if scheme.prune_layers:
        parts.append(f"without layers {', '.join(map(str, sorted(scheme.prune_layers)))}"[:500])
    if scheme.sparsity:
        parts.append(f"sparsity {scheme.sparsity:g}")
    if scheme.block_size:
        parts.append(f"blocks of {scheme.block_size}")
    return "; ".join(parts)


def _probe(name: str) -> Variant:
    file = File(name="model", size=0, sha256="0" * 64, index="0" * 64)
    return Variant(
        name=name, runtime="x", format="x", quantization="x", files=(file,), memory_bytes=0
    )
