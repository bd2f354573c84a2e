import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from demo_models.gguf_export import write_gguf
from demo_models.weights import Shape, vocabulary

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import LoadSpec, Scheme
from runtimes.errors import QuantizeError
from runtimes.llama_cpp.inspect import GgufInspector
from runtimes.llama_cpp.quantize import LlamaCppQuantizer, _check_source
from runtimes.text.steps import whole

HELDOUT = Path(__file__).parents[3] / "scripts" / "demo_models" / "heldout.txt"


def quantize(source: Path, scheme: str | Scheme, destination: Path) -> list[float]:
    done: list[float] = []
    how = Scheme(scheme) if isinstance(scheme, str) else scheme
    LlamaCppQuantizer().quantize(source, how, destination, lambda _, part: done.append(part))
    return done


@pytest.mark.parametrize(
    ("scheme", "kind", "share"),
    [
        ("q8_0", "q8_0", 0.54),
        ("q6_k", "q6_k", 0.42),
        ("q5_k_m", "q5_k", 0.37),
        ("q5_k_s", "q5_k", 0.36),
        ("q5_0", "q5_0", 0.36),
        ("q4_k_m", "q4_k", 0.32),
        ("q4_k_s", "q4_k", 0.31),
        ("q4_0", "q4_0", 0.31),
        ("iq4_nl", "iq4_nl", 0.31),
        ("iq4_xs", "iq4_xs", 0.29),
        ("q3_k_l", "q3_k", 0.29),
        ("q3_k_m", "q3_k", 0.27),
        ("q3_k_s", "q3_k", 0.25),
        ("iq3_s", "iq3_s", 0.25),
        ("q2_k", "q2_k", 0.22),
    ],
)
def test_a_scheme_makes_the_file_smaller(
    scheme: str, kind: str, share: float, demo_models: Path, tmp_path: Path
) -> None:
    source, made = demo_models / "base.gguf", tmp_path / "made.gguf"
    done = quantize(source, scheme, made)
    found = GgufInspector().inspect(made)
    assert found.quantization == scheme
    assert kind in {tensor.type for tensor in found.tensors}
    assert made.stat().st_size / source.stat().st_size < share
    assert done[0] == 0
    assert done[-1] == 1
    assert done == sorted(done)
    assert len(done) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["made.gguf"]


def test_so_few_bits_need_a_calibration_text(demo_models: Path, tmp_path: Path) -> None:
    source, made = demo_models / "base.gguf", tmp_path / "made.gguf"
    with pytest.raises(QuantizeError, match="importance matrix") as caught:
        quantize(source, "iq2_xs", made)
    assert "calibration" in caught.value.advice
    quantize(source, Scheme("iq2_xs", calibration=calibration(tmp_path)), made)
    assert GgufInspector().inspect(made).quantization == "iq2_xs"
    assert made.stat().st_size / source.stat().st_size < 0.2


def calibration(folder: Path) -> Path:
    """Return a calibration text without the sentences that the tests measure on."""
    path = folder / "calibration.txt"
    path.write_text(HELDOUT.read_text(encoding="utf-8")[10_000:16_000], encoding="utf-8")
    return path


def nats_per_token(path: Path) -> float:
    spec = LoadSpec({path.name: path}, Task.TEXT_GENERATION, threads=1)
    engine = registry.find("llama_cpp").load(spec)
    score = whole(engine.score(HELDOUT.read_text(encoding="utf-8")[:4000]))
    engine.close()
    return score.negative_log_likelihood / score.tokens


def test_an_importance_matrix_keeps_more_of_the_model(demo_models: Path, tmp_path: Path) -> None:
    source, text = demo_models / "base.gguf", calibration(tmp_path)
    for name in ("q2_k", "q3_k_s"):
        quantize(source, name, tmp_path / "plain.gguf")
        quantize(source, Scheme(name, calibration=text), tmp_path / "informed.gguf")
        assert (tmp_path / "plain.gguf").stat().st_size == (
            tmp_path / "informed.gguf"
        ).stat().st_size
        informed, plain = (nats_per_token(tmp_path / f"{n}.gguf") for n in ("informed", "plain"))
        assert informed < plain


def test_importance_is_the_mean_square_of_what_each_weight_meets(
    demo_models: Path, tmp_path: Path
) -> None:
    from runtimes.llama_cpp.importance import measure_importance

    source = demo_models / "base.gguf"
    found = measure_importance(source, calibration(tmp_path), lambda *_: None)
    matrices = {
        tensor.name: tensor.shape[-1]
        for tensor in GgufInspector().inspect(source).tensors
        if len(tensor.shape) == 2
    }
    assert {name: len(values) for name, values in found.items()} == matrices
    assert all((values >= 0).all() and values.any() for values in found.values())
    # Query, key and value read the same normalised activations, gate and up too.
    for group in (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up")):
        for layer in (0, 1):
            first, *others = (found[f"blk.{layer}.{name}.weight"] for name in group)
            assert all((first == other).all() for other in others)
    # RMSNorm's output has a mean square of its weight's, which is near one after training.
    assert 0.01 < found["blk.0.attn_q.weight"].mean() < 100


def test_the_same_source_and_text_give_the_same_bytes(demo_models: Path, tmp_path: Path) -> None:
    scheme = Scheme("q4_k_m", calibration=calibration(tmp_path))
    for name in ("a", "b"):
        quantize(demo_models / "base.gguf", scheme, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_only_a_language_model_is_calibrated(demo_models: Path, tmp_path: Path) -> None:
    source = demo_models / "base.gguf"
    encoder = replace(GgufInspector().inspect(source), task=Task.EMBEDDING)
    _check_source(source, Scheme("q4_0"), encoder)
    with pytest.raises(QuantizeError, match="not a language model"):
        _check_source(source, Scheme("q4_0", calibration=calibration(tmp_path)), encoder)


def test_a_text_too_short_to_calibrate_on_is_refused(demo_models: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    for content, reason in (
        (b"a few words", "at least 64"),
        (b"\xff" * 999, "UTF-8"),
        (b"", "1 to"),
    ):
        short.write_bytes(content)
        with pytest.raises(QuantizeError, match=reason):
            quantize(
                demo_models / "base.gguf", Scheme("q4_0", calibration=short), tmp_path / "made"
            )
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


@pytest.mark.parametrize("scheme", ["f16", "q8_0"])
def test_layers_are_left_out(scheme: str, demo_models: Path, tmp_path: Path) -> None:
    source, made = demo_models / "base.gguf", tmp_path / "made.gguf"
    quantize(source, Scheme(scheme, prune_layers=(0,)), made)
    found = GgufInspector().inspect(made)
    assert found.metadata["llama.block_count"] == "1"
    kept = {tensor.name for tensor in found.tensors if tensor.name.startswith("blk.")}
    assert kept
    assert all(name.startswith("blk.0.") for name in kept)
    if scheme == "f16":
        # The former layer 1 is now layer 0.
        assert stored(made, "blk.0.attn_q.weight") == stored(source, "blk.1.attn_q.weight")
    assert math.isfinite(nats_per_token(made))


def stored(path: Path, name: str) -> bytes:
    (tensor,) = (t for t in GgufInspector().inspect(path).tensors if t.name == name)
    return path.read_bytes()[tensor.offset : tensor.offset + tensor.size]


def test_layers_that_are_not_there_are_refused(demo_models: Path, tmp_path: Path) -> None:
    for layers in ((2,), (-1,), (0, 0), (0, 1)):
        with pytest.raises(QuantizeError) as caught:
            quantize(
                demo_models / "base.gguf", Scheme("q8_0", prune_layers=layers), tmp_path / "made"
            )
        assert caught.value.advice
    with pytest.raises(QuantizeError, match="sparsity"):
        quantize(demo_models / "base.gguf", Scheme("q8_0", sparsity=0.5), tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_size_is_predicted_without_making_it(demo_models: Path, tmp_path: Path) -> None:
    source, made = demo_models / "base.gguf", tmp_path / "made.gguf"
    text = calibration(tmp_path)
    for scheme in (
        Scheme("f16"),
        Scheme("q8_0"),
        Scheme("q4_k_m", prune_layers=(1,)),
        Scheme("q2_k", calibration=text),
    ):
        quantize(source, scheme, made)
        predicted = LlamaCppQuantizer().predict_size(source, scheme)
        assert predicted == pytest.approx(made.stat().st_size, rel=0.02)


def test_f16_is_a_copy(demo_models: Path, tmp_path: Path) -> None:
    quantize(demo_models / "base.gguf", "f16", tmp_path / "made.gguf")
    assert (tmp_path / "made.gguf").read_bytes() == (demo_models / "base.gguf").read_bytes()


@pytest.mark.parametrize(
    ("dim", "scheme", "fallback"),
    [
        (896, "q4_k_m", "q5_0"),
        (896, "q5_k_m", "q5_1"),
        (896, "q6_k", "q8_0"),
        (96, "q4_k_m", "q5_0"),
        (96, "q8_0", "q8_0"),
        (80, "q8_0", "f16"),
    ],
)
def test_rows_that_no_block_divides_get_llama_cpps_fallback(
    dim: int, scheme: str, fallback: str, tmp_path: Path
) -> None:
    shape = Shape(dim=dim, layers=1, heads=dim // 16, kv_heads=1, hidden=512)
    source = tmp_path / "narrow.gguf"
    tensors = shape.tensors()
    write_gguf(
        source, "narrow", shape, vocabulary(), lambda name: np.ones(tensors[name], np.float16)
    )
    quantize(source, scheme, tmp_path / "made.gguf")
    types = {
        tensor.name: tensor.type
        for tensor in GgufInspector().inspect(tmp_path / "made.gguf").tensors
    }
    assert types["blk.0.attn_q.weight"] == fallback
    predicted = LlamaCppQuantizer().predict_size(source, Scheme(scheme))
    assert predicted == pytest.approx((tmp_path / "made.gguf").stat().st_size, rel=0.02)


def test_converting_back_and_unknown_schemes_are_refused(
    built_models: Path, tmp_path: Path
) -> None:
    q8 = built_models / "base" / "gguf-q8" / "model.gguf"
    for source, scheme in ((q8, "bf16"), (q8, "f16"), (q8, "q3_xxl")):
        with pytest.raises(QuantizeError) as caught:
            quantize(source, scheme, tmp_path / "made.gguf")
        assert caught.value.advice
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_file_can_be_quantized_again(built_models: Path, tmp_path: Path) -> None:
    q8 = built_models / "base" / "gguf-q8" / "model.gguf"
    quantize(q8, "q4_0", tmp_path / "made.gguf")
    assert GgufInspector().inspect(tmp_path / "made.gguf").quantization == "q4_0"
    assert (tmp_path / "made.gguf").stat().st_size < q8.stat().st_size


def test_nothing_is_left_when_the_disk_refuses(demo_models: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "made.gguf"
    with pytest.raises((QuantizeError, OSError)):
        quantize(demo_models / "base.gguf", "q8_0", gone)
    assert list(tmp_path.iterdir()) == []
