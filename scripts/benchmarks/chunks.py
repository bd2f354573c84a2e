"""Bytes of a fine-tune of the last fifth of the layers by chunks, beside cutting by size alone."""

from pathlib import Path

from artifact.chunks import ChunkIndex, encode_index, index_file
from benchmarks.fine_tunes import SCHEMES, make
from benchmarks.result import Result
from runtimes import registry
from runtimes.build.chunk_index import index_files
from runtimes.llama_cpp.inspect import GgufInspector

BAR = 1.01
MEGABYTE = 1e6


def run(directory: Path, parameters: str) -> list[Result]:
    tunes = make(directory, parameters)
    return [_row(scheme, tunes.base(scheme), tunes.last_layers(scheme)) for scheme in SCHEMES]


def _row(scheme: str, base: Path, tuned: Path) -> Result:
    changed = _changed_bytes(base, tuned)
    ours = _sent_bytes(_by_tensors(base), _by_tensors(tuned))
    fixed = _sent_bytes(index_file(base), index_file(tuned))
    size = tuned.stat().st_size
    return Result(
        f"last 20 % of layers tuned, {scheme}, by chunks",
        f"{ours / MEGABYTE:.2f} MB = {ours / changed:.4f} x changed tensors",
        f"{fixed / changed:.4f} x, cut every MiB",
        f"<= {BAR} x",
        ours <= BAR * changed,
        f"{size / MEGABYTE:.0f} MB file, {100 * ours / size:.1f} % sent, index included",
    )


def _by_tensors(path: Path) -> ChunkIndex:
    return index_files(registry.find("llama_cpp"), {path.name: path})[path.name]


def _sent_bytes(base: ChunkIndex, tuned: ChunkIndex) -> int:
    missing = set(tuned.chunks) - set(base.chunks)
    return len(encode_index(tuned)) + sum(chunk.size for chunk in missing)


def _changed_bytes(base: Path, tuned: Path) -> int:
    old, new = base.read_bytes(), tuned.read_bytes()
    return sum(
        tensor.size
        for tensor in GgufInspector().inspect(tuned).tensors
        if old[tensor.offset : tensor.offset + tensor.size]
        != new[tensor.offset : tensor.offset + tensor.size]
    )
