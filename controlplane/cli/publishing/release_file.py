"""release.yaml: a release as its publisher writes it, checked before anything is sent.

Strict: unknown and repeated keys are refused, and an error names the line and the field. Paths are
relative to the file. Beside the manifest's own fields there are ``model`` (a folder made by
`flotilla model build`), ``adapters`` (folders made by `flotilla model adapter`), ``max_memory``
("64MiB"; in ``selection`` too), ``variants`` (only these), ``text_file`` and ``file`` in checks,
``min_release`` (a version; devices refuse earlier releases of this name), and ``hardware_classes``
(other devices refuse this release).
"""

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from artifact.manifest import (
    Label,
    Probation,
    QualifiedName,
    Route,
    SelectionPolicy,
    Text,
    Version,
)
from artifact.sizes import parse_size
from artifact.trust.metadata import HardwareClasses
from controlplane.cli.app import RefusedError
from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.yaml_file import YamlFile, read_bounded, size_at

_EXAMPLE = "docs/release-file.md shows a release file with every field."


class ComponentFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Model and limits of one slot."""

    slot: Label
    model: Annotated[str, Meta(min_length=1, max_length=4096)]
    max_memory: int | str = 0
    max_concurrency: Annotated[int, Meta(ge=0, le=256)] = 0
    idle_unload_seconds: Annotated[float, Meta(ge=0, le=86400)] = 0
    share_prefixes: bool = True
    variants: Annotated[tuple[Label, ...], Meta(max_length=64)] = ()
    adapters: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=4096)], ...], Meta(max_length=32)
    ] = ()

    @property
    def max_memory_bytes(self) -> int:
        return parse_size(self.max_memory)


class ReleaseFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of release.yaml, with the contents of its files."""

    name: QualifiedName
    version: Version
    components: Annotated[tuple[ComponentFile, ...], Meta(min_length=1, max_length=32)]
    description: Text = ""
    routes: Annotated[tuple[Route, ...], Meta(max_length=128)] = ()
    probation: Probation = Probation()
    selection: SelectionPolicy = SelectionPolicy()
    min_release: Version | None = None
    hardware_classes: HardwareClasses = ()


def load_release_file(path: Path) -> ReleaseFile:
    """Read and check release.yaml; RefusedError names the line and the field that is wrong."""
    file = YamlFile(path, _EXAMPLE)
    _read_check_files(path, file.raw)
    try:
        _read_policy_sizes(file.raw)
        release = file.convert(ReleaseFile)
        for position, component in enumerate(release.components):
            size_at(component.max_memory, f"$.components[{position}].max_memory")
    except msgspec.ValidationError as error:
        file.refuse(error)
    return release


def _read_policy_sizes(raw: Any) -> None:
    """Convert ``max_memory`` of the selection policy to the manifest's bytes."""
    policy = raw.get("selection") if isinstance(raw, dict) else None
    if not isinstance(policy, dict):
        return
    slots = policy.get("slots")
    own = slots.items() if isinstance(slots, dict) else ()
    for place, part in (("", policy), *((f".slots.{slot}", part) for slot, part in own)):
        if isinstance(part, dict) and isinstance(part.get("max_memory"), int | str):
            size = part.pop("max_memory")
            part["max_memory_bytes"] = size_at(size, f"$.selection{place}.max_memory")


def _read_check_files(path: Path, raw: Any) -> None:
    """Replace text_file and file by their contents.

    A value of an unexpected form stays as it is, and the schema refuses it.
    """
    checks = raw.get("probation") if isinstance(raw, dict) else None
    checks = checks.get("checks") if isinstance(checks, dict) else None
    for check in checks if isinstance(checks, list) else ():
        if not isinstance(check, dict):
            continue
        if isinstance(check.get("text_file"), str):
            text = read_bounded(path.parent / check.pop("text_file"))
            check["text"] = text.decode(errors="replace")
        if isinstance(check.get("file"), str):
            file = path.parent / check.pop("file")
            try:
                tensors = json.loads(read_bounded(file))
            except (ValueError, RecursionError) as error:
                raise RefusedError(
                    f"{file} is not JSON: {error}",
                    advice='It holds {"inputs": [...], "outputs": [...]}, tensors in the Open '
                    "Inference Protocol's form, or an embedding model's expected.json.",
                    exit_code=ExitCode.USAGE,
                ) from error
            check.update(tensors if isinstance(tensors, dict) else {"inputs": tensors})
