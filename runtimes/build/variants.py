"""Making one variant after the other in a folder: quantized, inspected, measured, described."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from artifact.manifest import Task, Variant
from runtimes.base import Inspection, LoadSpec, Progress, Quantizer
from runtimes.build.description import context_bytes, described_files, recipe_of
from runtimes.build.request import Report, VariantRequest
from runtimes.build.source import Source
from runtimes.errors import BuildError
from runtimes.evaluation.comparison import Comparison
from runtimes.evaluation.quality import Evaluation, measure
from runtimes.predictions import Predictions

if TYPE_CHECKING:
    from runtimes.evaluation.tape import Tape


@dataclass(frozen=True, slots=True)
class Compared:
    """A variant with what was measured, and its comparison with the source."""

    variant: Variant
    comparison: Comparison


class VariantMaker:
    """Keeps a quantizer per source: what one learns for a scheme serves the next."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        context_length: int,
        evaluation: Evaluation | None,
        report: Report,
    ) -> None:
        self._folder = folder
        self._task = task
        self._context_length = context_length
        self._evaluation = evaluation
        self._report = report
        self._quantizers: dict[Path, Quantizer] = {}
        self._tapes: dict[Path, Tape] = {}

    def quantizer(self, source: Source) -> Quantizer:
        if source.path not in self._quantizers:
            self._quantizers[source.path] = source.runtime.quantizer()
        return self._quantizers[source.path]

    def make(self, request: VariantRequest, source: Source) -> Variant:
        """Quantizes, inspects and describes; nothing is measured yet."""
        runtime = source.runtime
        folder = self._folder / request.name
        folder.mkdir()
        main = folder / f"model.{runtime.format}"
        for path in source.side_files:
            shutil.copyfile(path, folder / path.name)
        progress = self._progress(request.name)
        self.quantizer(source).quantize(source.path, request.how, main, progress)
        inspection = runtime.inspector().inspect(main)
        paths = sorted(folder.iterdir())
        size = sum(path.stat().st_size for path in paths)
        context_length = self._context(inspection)
        return Variant(
            name=request.name,
            runtime=runtime.name,
            format=runtime.format,
            quantization=request.how.name,
            files=described_files(runtime, paths),
            memory_bytes=runtime.estimate_memory(inspection, size, context_length),
            context_length=context_length,
            context_bytes=context_bytes(runtime, inspection, size, context_length),
            parameters=inspection.parameters,
            decode_bytes=runtime.decode_bytes(inspection),
            matrices=sum(len(tensor.shape) > 1 for tensor in inspection.tensors),
            recipe=recipe_of(request.how),
        )

    def drop(self, name: str) -> None:
        """Takes a variant away again."""
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def measured(self, variant: Variant, source: Source) -> Variant:
        """The variant with its quality, when there is something to measure it on."""
        if self._evaluation is None:
            return variant
        progress = self._progress(variant.name)
        progress("measuring", 0.0)
        spec = LoadSpec(self._files(variant), self._task, variant.context_length)
        engine = source.runtime.load(spec)
        try:
            quality = measure(engine, self._evaluation)
        finally:
            engine.close()
        progress("measuring", 1.0)
        return msgspec.structs.replace(variant, quality=quality)

    def compared(self, variant: Variant, source: Source, spare: Path) -> Compared:
        """The variant with its quality, its divergence and its memory; BuildError without data.

        What the source says is kept in the folder ``spare``.
        """
        from runtimes.evaluation.compare import compare
        from runtimes.evaluation.frames import EvaluationJob

        evaluation = self._evaluation
        if evaluation is None:
            raise BuildError(
                "there is nothing to compare variants on", advice="Give evaluation data."
            )

        def job(files: dict[str, Path]) -> EvaluationJob:
            return EvaluationJob(
                runtime=source.runtime.name,
                files={name: str(path) for name, path in files.items()},
                task=self._task,
                context_length=variant.context_length,
                evaluation=str(evaluation.path),
            )

        found = compare(
            job(source.files),
            job(self._files(variant)),
            evaluation,
            self._progress(variant.name),
            self._tape(source, spare),
        )
        with_figures = msgspec.structs.replace(
            variant,
            quality=found.quality,
            divergence=found.divergence,
            measured_memory_bytes=found.memory_bytes,
        )
        return Compared(with_figures, found)

    def said(self) -> Iterator[Predictions]:
        """What a source said of the evaluation data, when that was compared with and kept."""
        for tape in self._tapes.values():
            if tape.whole:
                return tape.replayed()
        return iter(())

    def _tape(self, source: Source, spare: Path) -> "Tape":
        from runtimes.evaluation.tape import Tape

        if source.path not in self._tapes:
            self._tapes[source.path] = Tape(spare / f"{len(self._tapes)}.tape")
        return self._tapes[source.path]

    def _files(self, variant: Variant) -> dict[str, Path]:
        return {file.name: self._folder / variant.name / file.name for file in variant.files}

    def _progress(self, name: str) -> Progress:
        return lambda what, done: self._report(name, what, done)

    def _context(self, inspection: Inspection) -> int:
        if self._task is not Task.TEXT_GENERATION:
            return 0
        trained = inspection.context_length
        context_length = self._context_length or trained
        if not 0 < context_length <= (trained or context_length):
            raise BuildError(
                f"a context of {context_length} tokens is not within the {trained} that the model "
                "was trained for",
                advice="Give --context-length within that.",
            )
        return context_length
