"""Published ONNX models built as they are, with sizes for their free dimensions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from artifact.manifest import Task, Variant
from runtimes import registry
from runtimes.arrays import to_value
from runtimes.base import LoadSpec
from runtimes.build import BuildRequest, VariantRequest, build

RAPIDOCR = "rapidocr_onnxruntime/models"


def built(source: Path, out: Path, *schemes: str, force: bool = False) -> tuple[Variant, ...]:
    request = BuildRequest(
        sources=(source,),
        name="acme/wild",
        version="1",
        variants=tuple(VariantRequest(scheme, scheme) for scheme in schemes),
        out=out,
        force=force,
    )
    return build(request, lambda *_: None).model.variants


@pytest.mark.parametrize(
    ("package", "path", "shapes"),
    [
        ("magika", "magika/models/standard_v3_3/model.onnx", {"bytes": (1, 2048)}),
        ("nudenet", "nudenet/320n.onnx", {"images": (1, 3, 320, 320)}),
        ("rapidocr-onnxruntime", f"{RAPIDOCR}/ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 320, 320)}),
        ("rapidocr-onnxruntime", f"{RAPIDOCR}/ch_PP-OCRv4_rec_infer.onnx", {}),
        ("rapidocr-onnxruntime", f"{RAPIDOCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx", {}),
        ("silero-vad", "silero_vad/data/silero_vad.onnx", {"state": (2, 1, 128), "sr": ()}),
        ("silero-vad", "silero_vad/data/silero_vad_half.onnx", {"state": (2, 1, 128)}),
        ("silero-vad", "silero_vad/data/silero_vad_16k_sequence.onnx", {"h": (1, 1, 128)}),
    ],
)
def test_a_published_model_is_built_with_sizes_that_work(
    package: str,
    path: str,
    shapes: dict[str, tuple[int, ...]],
    wheel: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    source = wheel(package) / path
    (variant,) = built(source, tmp_path / "out")
    assert variant.quantization == "fp32"
    assert variant.trial is not None
    assert variant.trial.values > 0
    assert variant.input_shapes.items() >= shapes.items()
    assert variant.warnings == ()
    files = {file.name: tmp_path / "out" / "source" / file.name for file in variant.files}
    engine = registry.find("onnx").load(LoadSpec(files, Task.TENSOR, threads=1))
    zeros = [
        to_value(spec.name, np.zeros(variant.input_shapes[spec.name], np.dtype(kind)))
        for spec in engine.tensors()[0]
        for kind in [{"FP32": "f4", "INT64": "i8", "INT32": "i4"}[spec.datatype]]
    ]
    assert all(len(output.data) for output in engine.infer(zeros))
    engine.close()


def test_smaller_variants_are_compared_with_their_source(
    wheel: Callable[[str], Path], tmp_path: Path
) -> None:
    source = wheel("rapidocr-onnxruntime") / RAPIDOCR / "ch_PP-OCRv4_rec_infer.onnx"
    as_is, half, whole = built(source, tmp_path / "out", "source", "fp16", "fp32")
    assert as_is.trial is not None
    assert half.trial is not None
    assert whole.trial is not None
    assert (as_is.trial.relative_error, whole.trial.relative_error) == (0, 0)
    assert 0 < half.trial.relative_error < 0.05
    assert half.size_bytes < 0.6 * as_is.size_bytes
