"""The release manifest: signed by the publisher, installed by the device.

One canonical JSON document (sorted keys, no blanks, UTF-8) per release. Its SHA-256 is the TUF
target that the publisher's role lists. Everything in it is bounded here; files are named by digest,
and their names are labels that never become paths.
"""

from artifact.manifest.codec import (
    MAX_MANIFEST_BYTES,
    canonical_json,
    decode_release,
    encode_release,
)
from artifact.manifest.consistency import check_lineage, check_publishable, check_release
from artifact.manifest.fields import (
    MAX_FILE_BYTES,
    Bytes,
    Digest,
    FileName,
    Label,
    QualifiedName,
    Record,
    Text,
    Version,
)
from artifact.manifest.models import (
    Adapter,
    Divergence,
    File,
    Lineage,
    ModelVersion,
    Quality,
    Relation,
    Task,
    Trial,
    Variant,
)
from artifact.manifest.probation import (
    Check,
    CompletionCheck,
    Embedding,
    EmbeddingCheck,
    PerplexityCheck,
    Probation,
    Tensor,
    TensorCheck,
)
from artifact.manifest.references import REFERENCE, split_reference, target_path
from artifact.manifest.release import Component, Release
from artifact.manifest.routes import Cascade, Escalation, Pipeline, Route, Share, Target
from artifact.manifest.selection import Exclusion, Objective, SelectionPolicy, SlotPolicy
from artifact.manifest.version import SemanticVersion, parse_version

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_MANIFEST_BYTES",
    "REFERENCE",
    "Adapter",
    "Bytes",
    "Cascade",
    "Check",
    "CompletionCheck",
    "Component",
    "Digest",
    "Divergence",
    "Embedding",
    "EmbeddingCheck",
    "Escalation",
    "Exclusion",
    "File",
    "FileName",
    "Label",
    "Lineage",
    "ModelVersion",
    "Objective",
    "PerplexityCheck",
    "Pipeline",
    "Probation",
    "QualifiedName",
    "Quality",
    "Record",
    "Relation",
    "Release",
    "Route",
    "SelectionPolicy",
    "SemanticVersion",
    "Share",
    "SlotPolicy",
    "Target",
    "Task",
    "Tensor",
    "TensorCheck",
    "Text",
    "Trial",
    "Variant",
    "Version",
    "canonical_json",
    "check_lineage",
    "check_publishable",
    "check_release",
    "decode_release",
    "encode_release",
    "parse_version",
    "split_reference",
    "target_path",
]
