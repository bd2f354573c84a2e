"""Build model versions: make, measure and describe every variant of a model.

The result is a folder: ``model.json`` (artifact.manifest.ModelVersion), ``VARIANT/FILE`` for every
file, ``report.json`` if the build tried candidates, and ``expected.json`` for an embedding model
that was compared with its source. It is built beside its destination and renamed at the end, so
that a folder of that name always holds a whole model.
"""

from runtimes.build.folder import EXPECTED_FILE, MODEL_FILE, read_model
from runtimes.build.pipeline import build
from runtimes.build.request import (
    Attempt,
    BuildRequest,
    BuildResult,
    GoalsMissedError,
    Report,
    VariantRequest,
)

__all__ = [
    "EXPECTED_FILE",
    "MODEL_FILE",
    "Attempt",
    "BuildRequest",
    "BuildResult",
    "GoalsMissedError",
    "Report",
    "VariantRequest",
    "build",
    "read_model",
]
