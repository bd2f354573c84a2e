"""Model versions, their variants, and the adapters that fit them."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, field

from artifact.manifest.fields import (
    Bytes,
    Digest,
    FileName,
    Label,
    QualifiedName,
    Record,
    Text,
    Version,
)

# Names of ONNX operators and tensors.
OperatorName = Annotated[str, Meta(min_length=1, max_length=128)]
TensorName = Annotated[str, Meta(min_length=1, max_length=256)]
Shape = Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 32)], ...], Meta(max_length=8)]
Count = Annotated[int, Meta(ge=0, le=1 << 32)]


class Task(StrEnum):
    """Task of a model, which decides the endpoints that can call it."""

    TEXT_GENERATION = "text-generation"
    EMBEDDING = "embedding"
    CLASSIFICATION = "classification"
    TENSOR = "tensor"


class Relation(StrEnum):
    """Relation of a model version to its base; Hugging Face's terms, then ours."""

    FINETUNE = "finetune"
    ADAPTER = "adapter"
    MERGE = "merge"
    QUANTIZED = "quantized"
    PRUNED = "pruned"
    DISTILLED = "distilled"


class File(Record, frozen=True):
    """One file of a variant. ``index`` is the SHA-256 of its chunk index (artifact.chunks)."""

    name: FileName
    size: Bytes
    sha256: Digest
    index: Digest


class Quality(Record, frozen=True):
    """A measured quality; ``higher_is_better`` tells accuracy from perplexity.

    For an embedding model it is the mean cosine between the source's vectors and the variant's.
    """

    metric: Annotated[str, Meta(pattern=r"^[a-z_]{1,40}\Z")]
    value: float
    higher_is_better: bool
    dataset: Annotated[str, Meta(max_length=200)]


class Divergence(Record, frozen=True):
    """Difference of a variant's predictions from its source's, on the same data.

    ``same_top`` is the fraction of ``predictions`` (tokens of a text, rows of a classifier) whose
    likeliest token or class is the source's. ``mean_kl`` is their mean Kullback-Leibler divergence,
    in nats, from the source's distribution to the variant's; None if the model gives no
    distribution.
    """

    same_top: Annotated[float, Meta(ge=0, le=1)]
    predictions: Annotated[int, Meta(ge=1, le=1 << 53)]
    dataset: Annotated[str, Meta(max_length=200)]
    mean_kl: Annotated[float, Meta(ge=0)] | None = None


class Trial(Record, frozen=True):
    """A run of the variant at build, compared with a run of its source on the same inputs.

    ``inputs`` names the data: ``generated``, or an evaluation data set. ``relative_error`` is the
    root mean square of the difference between the outputs, divided by that of the source's outputs,
    over ``values`` values that are finite in the source; 0 for a model deployed as published.
    """

    inputs: Annotated[str, Meta(max_length=200)]
    values: Annotated[int, Meta(ge=0, le=1 << 53)]
    relative_error: Annotated[float, Meta(ge=0)]


class Variant(Record, frozen=True):
    """One deployable build of a model version.

    ``memory_bytes`` is the predicted peak at ``context_length`` (0 for models without one):
    weights, KV cache and compute buffers, without the runtime's own process. Of it each token of
    context takes ``context_bytes`` (0: unknown). ``parameters`` counts the weights (0: unknown);
    ``decode_bytes`` are those that one generated token reads, by type (empty: unknown), in so many
    ``matrices`` (0: unknown).
    ``measured_memory_bytes`` is what loading and evaluating it took at its peak where it was built
    (0: unmeasured). ``recipe`` describes how it was made from its source, beyond ``quantization``.
    ``weight_bytes`` are the bytes of weights by stored type, and ``operators`` the number of nodes
    by ONNX operator, of a model deployed as published. ``input_shapes`` are sizes of all inputs,
    by name, that the variant ran with at build (empty: every size is fixed, or none was found).
    ``warnings`` are findings of the build that an operator should read before deploying.
    """

    name: Label
    runtime: Label
    format: Label
    quantization: Label
    files: Annotated[tuple[File, ...], Meta(min_length=1, max_length=64)]
    memory_bytes: Bytes
    context_length: Annotated[int, Meta(ge=0, le=1 << 24)] = 0
    context_bytes: Bytes = 0
    parameters: Annotated[int, Meta(ge=0, le=1 << 50)] = 0
    decode_bytes: Annotated[dict[Label, Bytes], Meta(max_length=32)] = field(default_factory=dict)
    matrices: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    required_isa: Annotated[tuple[Label, ...], Meta(max_length=32)] = ()
    quality: Quality | None = None
    divergence: Divergence | None = None
    measured_memory_bytes: Bytes = 0
    recipe: Annotated[str, Meta(max_length=1024)] = ""
    weight_bytes: Annotated[dict[Label, Bytes], Meta(max_length=64)] = field(default_factory=dict)
    operators: Annotated[dict[OperatorName, Count], Meta(max_length=1024)] = field(
        default_factory=dict
    )
    input_shapes: Annotated[dict[TensorName, Shape], Meta(max_length=4096)] = field(
        default_factory=dict
    )
    trial: Trial | None = None
    warnings: Annotated[tuple[Annotated[str, Meta(max_length=500)], ...], Meta(max_length=32)] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


class Lineage(Record, frozen=True):
    """Origin of a model version."""

    relation: Relation
    name: QualifiedName
    version: Version

    @property
    def reference(self) -> str:
        """Reference publisher/name@version."""
        return f"{self.name}@{self.version}"


class ModelVersion(Record, frozen=True):
    """An immutable version of a model, with every variant that may be deployed.

    ``lineage`` is the base that it derives from; a merge has further bases in ``also_from``.
    """

    name: QualifiedName
    version: Version
    task: Task
    variants: Annotated[tuple[Variant, ...], Meta(min_length=1, max_length=64)]
    lineage: Lineage | None = None
    also_from: Annotated[tuple[Lineage, ...], Meta(max_length=15)] = ()
    description: Text = ""

    @property
    def reference(self) -> str:
        """Reference publisher/name@version."""
        return f"{self.name}@{self.version}"


class Adapter(Record, frozen=True):
    """A LoRA that requests choose by name. It fits the files whose SHA-256 ``bases`` lists."""

    name: Label
    model: QualifiedName
    version: Version
    file: File
    bases: Annotated[tuple[Digest, ...], Meta(min_length=1, max_length=64)]
