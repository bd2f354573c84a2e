"""Build an adapter from a LoRA file: ``adapter.json``, and the file beside it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from artifact.manifest import Adapter
from runtimes import registry
from runtimes.base import Inspection, Runtime
from runtimes.build.description import described_files
from runtimes.build.folder import MODEL_FILE, half_made, read_model
from runtimes.build.source import open_source
from runtimes.errors import BuildError, UnsupportedModelError
from runtimes.inspection.process import inspect_apart

ADAPTER_FILE: Final = "adapter.json"


@dataclass(frozen=True, slots=True)
class AdapterRequest:
    """An adapter to build. Requests choose it by ``label``; ``base`` is a built model's folder."""

    source: Path
    base: Path
    label: str
    name: str
    version: str
    out: Path
    force: bool = False


def build_adapter(request: AdapterRequest) -> Adapter:
    """Bind an adapter to every variant of the base that it fits.

    Raises BuildError or UnsafeFileError.
    """
    source = open_source(request.source)
    bases = _fitting(source.runtime, source.inspection, request.base)
    _check_destination(request)
    with half_made(request.out) as folder:
        path = folder / f"adapter.{source.runtime.format}"
        shutil.copyfile(source.path, path)
        (file,) = described_files(source.runtime, [path])
        adapter = Adapter(
            name=request.label,
            model=request.name,
            version=request.version,
            file=file,
            bases=tuple(bases),
        )
        # Structs are not checked when they are made: decoding applies the manifest's bounds.
        try:
            adapter = msgspec.json.decode(msgspec.json.encode(adapter), type=Adapter)
        except msgspec.ValidationError as error:
            raise BuildError(
                f"the adapter's description is invalid: {error}",
                advice="Write names as lower-case publisher/name, labels in at most 63 characters.",
            ) from error
        document = msgspec.json.format(msgspec.json.encode(adapter), indent=1)
        (folder / ADAPTER_FILE).write_bytes(document)
        if request.out.exists():
            shutil.rmtree(request.out)
        folder.replace(request.out)
    return adapter


def _fitting(runtime: Runtime, adapter: Inspection, base: Path) -> list[str]:
    """Return the digests of the base's files that the adapter fits."""
    model = read_model(base)
    if model is None:
        raise BuildError(
            f"{base} has no readable {MODEL_FILE}",
            advice="Give --base a folder that `flotilla model build` made.",
        )
    digests, misfits = [], []
    location = registry.location(runtime.name)
    for variant in model.variants:
        if variant.runtime != runtime.name:
            continue
        for file in variant.files:
            if not file.name.endswith(f".{runtime.format}"):
                continue
            # Each variant is inspected: quantizing may have removed layers that the adapter needs.
            found = inspect_apart(location, base / variant.name / file.name).inspection
            try:
                runtime.check_adapter(adapter, found)
            except UnsupportedModelError as error:
                misfits.append(f"{variant.name}: {error}")
            else:
                digests.append(file.sha256)
    if not digests:
        reason = misfits[0] if misfits else f"the base has no variant for {runtime.name}"
        raise BuildError(
            f"the adapter fits no variant of {model.reference}; {reason}",
            advice="Give the base that it was trained on.",
        )
    return digests


def _check_destination(request: AdapterRequest) -> None:
    out = request.out
    if not out.exists():
        return
    is_adapter = (out / ADAPTER_FILE).is_file()
    if not out.is_dir() or (any(out.iterdir()) and not (is_adapter and request.force)):
        raise BuildError(
            f"{out} exists already",
            advice="Give --out a new folder, or --force to replace an adapter.",
        )
