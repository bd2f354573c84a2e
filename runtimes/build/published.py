"""Deploy a model as it was published: the variant scheme ``source``."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from runtimes.base import Inspection, Scheme
from runtimes.build.request import VariantRequest
from runtimes.build.source import Source
from runtimes.errors import BuildError
from runtimes.quantizing import check_scheme

SOURCE: Final = "source"
RECIPE: Final = "as published"
# Bounds of the manifest (artifact.manifest.Variant).
_MAX_OPERATORS: Final = 1024
_MAX_OPERATOR_NAME: Final = 128


def default_variants(sources: Sequence[Source]) -> list[VariantRequest]:
    """Return one request for each source, as published; the names tell several sources apart."""
    if len(sources) == 1:
        return [VariantRequest(SOURCE, SOURCE, sources[0].runtime.name)]
    names = [source.runtime.name for source in sources]
    return [
        VariantRequest(
            f"{SOURCE}-{name}" + (f"-{number}" if names.count(name) > 1 else ""), SOURCE, name
        )
        for number, name in enumerate(names, start=1)
    ]


def copy_source(source: Source, scheme: Scheme, main: Path) -> None:
    """Copy all files of a source; the model file becomes ``main``, the others keep their names."""
    check_scheme(source.runtime.name, scheme, (SOURCE,))
    for name, path in source.files.items():
        if path == source.path:
            shutil.copyfile(path, main)
        elif name == main.name:
            # The model refers to its external data by name, so that neither can be renamed.
            raise BuildError(
                f"{source.path.name} keeps weights in {name}, the name of the variant's model file",
                advice="Export the model with another name for its external data.",
            )
        else:
            shutil.copyfile(path, main.with_name(name))


def source_bytes(source: Source) -> int:
    """Return the bytes of all files of a source."""
    return sum(path.stat().st_size for path in source.files.values())


def contents(inspection: Inspection) -> dict[str, Any]:
    """Return the manifest's fields that describe what a published file contains."""
    sizes: Counter[str] = Counter()
    for tensor in inspection.tensors:
        sizes[tensor.type] += tensor.size
    operators = sorted(inspection.operators.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "weight_bytes": dict(sorted(sizes.items())),
        "operators": {
            name: count
            for name, count in operators[:_MAX_OPERATORS]
            if 0 < len(name) <= _MAX_OPERATOR_NAME
        },
    }
