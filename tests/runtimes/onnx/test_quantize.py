import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import LoadSpec, Scheme
from runtimes.errors import QuantizeError
from runtimes.evaluation.quality import predict, quality_of, read_evaluation
from runtimes.onnx.blocks import BLOCK_VALUES, pack_blocks
from runtimes.onnx.inspect import OnnxInspector
from runtimes.onnx.quantize import OnnxQuantizer

HELDOUT = Path(__file__).parents[3] / "scripts" / "demo_models" / "heldout.txt"


def quantize(source: Path, scheme: str | Scheme, destination: Path) -> list[float]:
    done: list[float] = []
    how = Scheme(scheme) if isinstance(scheme, str) else scheme
    OnnxQuantizer().quantize(source, how, destination, lambda _, part: done.append(part))
    return done


@pytest.mark.parametrize(
    ("scheme", "share"),
    [("fp16", 0.51), ("int8_weights", 0.36), ("int8", 0.27), ("int8_static", 0.34), ("int4", 0.24)],
)
def test_a_scheme_makes_the_file_smaller(
    scheme: str, share: float, demo_models: Path, tmp_path: Path
) -> None:
    source, made = demo_models / "base-onnx" / "model.onnx", tmp_path / "model.onnx"
    calibration = HELDOUT if scheme == "int8_static" else None
    assert quantize(source, Scheme(scheme, calibration=calibration), made)[-1] == 1
    assert OnnxInspector().inspect(made).quantization == scheme
    assert made.stat().st_size / source.stat().st_size < share
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_the_same_source_gives_the_same_bytes(demo_models: Path, tmp_path: Path) -> None:
    images = demo_models / "digits-eval.npz"
    for name in OnnxQuantizer().schemes:
        scheme = Scheme(name, calibration=images if name == "int8_static" else None, sparsity=0.25)
        for copy in ("a", "b"):
            quantize(demo_models / "digits.onnx", scheme, tmp_path / copy)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_copy_brings_the_weights_beside_it(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    weight = numpy_helper.from_array(np.ones((64, 32), dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32])],
        initializer=[weight],
    )
    source = tmp_path / "source" / "model.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        source,
        save_as_external_data=True,
        location="model.onnx_data",
    )
    (tmp_path / "made").mkdir()
    quantize(source, "fp32", tmp_path / "made" / "model.onnx")
    assert (tmp_path / "made" / "model.onnx_data").is_file()
    assert OnnxInspector().inspect(tmp_path / "made" / "model.onnx").parameters == 2048
    quantize(source, "int4", tmp_path / "made" / "small.onnx")
    assert OnnxInspector().inspect(tmp_path / "made" / "small.onnx").parameters == 2048


def test_what_cannot_be_quantized_is_refused(
    demo_models: Path, built_models: Path, tmp_path: Path
) -> None:
    int4 = built_models / "base" / "onnx-int4" / "model.onnx"
    plain = tmp_path / "add.onnx"
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        initializer=[numpy_helper.from_array(np.ones(1, dtype=np.float32), "unused")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    plain.write_bytes(model.SerializeToString())
    for source, scheme in ((int4, "int8"), (int4, "fp32"), (plain, "int4"), (plain, "int8")):
        with pytest.raises(QuantizeError) as caught:
            quantize(source, scheme, tmp_path / "made.onnx")
        assert caught.value.advice
    with pytest.raises(QuantizeError, match="int2"):
        quantize(demo_models / "digits.onnx", "int2", tmp_path / "made.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["add.onnx"]


def test_sparsity_zeroes_that_fraction_and_its_smallest(demo_models: Path, tmp_path: Path) -> None:
    source, made = demo_models / "digits.onnx", tmp_path / "made.onnx"
    quantize(source, Scheme("fp32", sparsity=0.5), made)
    before, after = matrices(source), matrices(made)
    assert set(before) == {"hidden.weight", "output.weight"}
    for name, dense in before.items():
        sparse = after[name]
        assert (sparse == 0).mean() == pytest.approx(0.5, abs=0.01)
        assert (sparse[sparse != 0] == dense[sparse != 0]).all()
        assert np.abs(dense[sparse == 0]).max() <= np.abs(dense[sparse != 0]).min()
    # The only gain is that the file compresses better.
    assert made.stat().st_size == source.stat().st_size
    assert len(zlib.compress(made.read_bytes())) < 0.7 * len(zlib.compress(source.read_bytes()))


def matrices(path: Path) -> dict[str, Any]:
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
        if len(tensor.dims) == 2
    }


@pytest.mark.parametrize("scheme", OnnxQuantizer().schemes)
def test_every_scheme_of_a_classifier_still_classifies(
    scheme: str, demo_models: Path, tmp_path: Path
) -> None:
    images = demo_models / "digits-eval.npz"
    how = Scheme(scheme, calibration=images if scheme == "int8_static" else None)
    quantize(demo_models / "digits.onnx", how, tmp_path / "model.onnx")
    spec = LoadSpec({"model.onnx": tmp_path / "model.onnx"}, Task.CLASSIFICATION, threads=1)
    engine = registry.find("onnx").load(spec)
    # Inputs and outputs keep their types.
    assert {tensor.datatype for side in engine.tensors() for tensor in side} == {"FP32"}
    evaluation = read_evaluation(images, Task.CLASSIFICATION)
    assert quality_of(predict(engine, evaluation), evaluation).value > 0.95
    engine.close()


def test_data_that_cannot_calibrate_are_refused(demo_models: Path, tmp_path: Path) -> None:
    short, other, plain = (tmp_path / name for name in ("short.txt", "other.npz", "plain.npy"))
    uneven, wordless = tmp_path / "uneven.jsonl", tmp_path / "wordless.jsonl"
    uneven.write_text('{"image": [0.5]}\n{"image": [0.5, 1]}\n')
    wordless.write_text('{"words": "none"}\n')
    short.write_text("too short")
    np.savez(other, pixels=np.zeros((2, 64), np.float32))
    np.save(plain, np.zeros((2, 64), np.float32))
    digits, text = demo_models / "digits.onnx", demo_models / "base-onnx" / "model.onnx"
    for source, data, reason in (
        (text, short, "needs 128"),
        (text, plain, "UTF-8"),
        (text, tmp_path / "gone", "is not a file"),
        (digits, other, "pixels"),
        (digits, plain, "npz"),
        (digits, short, "npz"),
        (digits, None, "needs data"),
        (digits, uneven, "differ in their inputs"),
        (digits, short.with_suffix(".jsonl"), "is not a file"),
        (text, wordless, "text"),
    ):
        with pytest.raises(QuantizeError, match=reason) as caught:
            quantize(source, Scheme("int8_static", calibration=data), tmp_path / "made.onnx")
        assert caught.value.advice
    assert not list(tmp_path.glob("*.onnx*"))


def test_lines_of_json_calibrate_as_an_npz_does(demo_models: Path, tmp_path: Path) -> None:
    images = np.load(demo_models / "digits-eval.npz")["image"][:64].astype(np.float32)
    lines, arrays = tmp_path / "images.jsonl", tmp_path / "images.npz"
    np.savez(arrays, image=images)
    lines.write_text("".join(json.dumps({"image": row.tolist()}) + "\n" for row in images))
    for data, made in ((lines, "a"), (arrays, "b")):
        scheme = Scheme("int8_static", calibration=data)
        quantize(demo_models / "digits.onnx", scheme, tmp_path / made)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_options_that_do_not_apply_are_refused(demo_models: Path, tmp_path: Path) -> None:
    for scheme, reason in (
        (Scheme("int8", calibration=HELDOUT), "calibration"),
        (Scheme("int4", prune_layers=(0,)), "prune_layers"),
        (Scheme("fp16", block_size=32), "block_size"),
        (Scheme("int4", block_size=33), "33"),
        (Scheme("fp32", sparsity=1.0), "sparsity"),
    ):
        with pytest.raises(QuantizeError, match=reason) as caught:
            quantize(demo_models / "digits.onnx", scheme, tmp_path / "made.onnx")
        assert caught.value.advice
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 100])
def test_blocks_hold_what_they_were_given(inputs: int, bits: int) -> None:
    matrix = np.random.default_rng(inputs).standard_normal((inputs, 5)).astype(np.float32)
    packed, scales = pack_blocks(matrix, bits)
    blocks = -(-inputs // BLOCK_VALUES)
    assert packed.shape == (5, blocks, BLOCK_VALUES * bits // 8)
    halves = [packed & 15, packed >> 4] if bits == 4 else [packed]
    quants = np.stack(halves, axis=-1).reshape(5, blocks, BLOCK_VALUES)
    zero = 1 << (bits - 1)
    values = ((quants.astype(np.float32) - zero) * scales[..., None]).reshape(5, -1)[:, :inputs].T
    # Half a step, or slightly more where a smaller scale clips the largest value.
    assert np.abs(values - matrix).max() < 1.7 * np.abs(scales).max()
    assert np.sqrt(np.square(values - matrix).mean()) < 0.4 * np.abs(scales).max()


def test_a_matrix_of_zeros_stays_one() -> None:
    packed, scales = pack_blocks(np.zeros((32, 2), dtype=np.float32))
    assert not scales.any()
    assert (packed == 0x88).all()
