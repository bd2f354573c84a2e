"""Faults that a fake model stages; tests/contract covers its normal behaviour."""

import subprocess
import sys
from pathlib import Path

import pytest

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import LoadSpec, Sampling, Scheme, TensorValue
from runtimes.errors import LoadError, QuantizeError, RuntimeFault, UnsafeFileError
from runtimes.fake import FakeEngine, FakeModel, Faults, read_model, write_model
from runtimes.text.steps import whole

CRASHED = 139


def engine(**fields: object) -> FakeEngine:
    return FakeEngine(FakeModel(**fields), 0)  # type: ignore[arg-type]


def run_in_process(path: Path) -> int:
    code = (
        "from pathlib import Path; from runtimes import registry;"
        "from runtimes.base import LoadSpec, Sampling; from artifact.manifest import Task;"
        f"spec = LoadSpec({{'m': Path({str(path)!r})}}, Task.TEXT_GENERATION);"
        "g = registry.find('fake').load(spec).generate('x', Sampling(max_tokens=9)); "
        "[print(p.token, flush=True) for p in g]"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert len(result.stdout.splitlines()) in {0, 3}
    return result.returncode


@pytest.mark.parametrize("faults", [Faults(on_load="crash"), Faults(crash_after_tokens=3)])
def test_a_crash_takes_the_process_with_it(faults: Faults, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.fake", FakeModel(faults=faults))
    assert run_in_process(path) == CRASHED


def test_errors_on_load(tmp_path: Path) -> None:
    for fault, error in (("error", LoadError), ("out_of_memory", MemoryError)):
        path = write_model(tmp_path / "m.fake", FakeModel(faults=Faults(on_load=fault)))  # type: ignore[arg-type]
        with pytest.raises(error):
            registry.find("fake").load(LoadSpec({"m": path}, Task.TEXT_GENERATION))


def test_a_failure_after_some_tokens() -> None:
    generation = engine(faults=Faults(fail_after_tokens=2)).generate("x", Sampling(max_tokens=9))
    assert [next(generation).token, next(generation).token]
    with pytest.raises(RuntimeFault, match="after 2 tokens"):
        next(generation)


def test_wrong_outputs() -> None:
    good, bad = engine(), engine(faults=Faults(wrong_outputs=True))
    assert (
        whole(bad.score("hello")).negative_log_likelihood
        > whole(good.score("hello")).negative_log_likelihood
    )
    value = TensorValue("input", "FP32", (1, 4), b"\0\0\x80\x3f" * 4)
    fields = {"task": Task.TENSOR}
    right = engine(**fields).infer([value])
    assert right != engine(**fields, faults=Faults(wrong_outputs=True)).infer([value])


def test_tokens_take_their_time() -> None:
    waited: list[float] = []
    slow = FakeEngine(FakeModel(token_seconds=0.25), 0, sleep=waited.append)
    list(slow.generate("x", Sampling(max_tokens=3)))
    assert waited == [0.25, 0.25, 0.25]


def test_memory_is_really_taken() -> None:
    assert engine(allocate_bytes=4 << 20, memory_bytes=1).memory_bytes() == 4 << 20


def test_quantizing_shrinks_and_worsens(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m.fake", FakeModel(padding="x" * 1000))
    quantizer = registry.find("fake").quantizer()
    quantizer.quantize(source, Scheme("quarter"), tmp_path / "q.fake", lambda *_: None)
    full, quarter = read_model(source), read_model(tmp_path / "q.fake")
    assert quarter.perplexity > full.perplexity
    assert quarter.memory_bytes == full.memory_bytes // 4
    assert (tmp_path / "q.fake").stat().st_size < source.stat().st_size
    with pytest.raises(QuantizeError, match="q9"):
        quantizer.quantize(source, Scheme("q9"), tmp_path / "x.fake", lambda *_: None)


def test_a_file_with_unknown_fields_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.fake"
    path.write_text('{"fake": 1, "surprise": true}')
    with pytest.raises(UnsafeFileError, match="surprise"):
        read_model(path)
