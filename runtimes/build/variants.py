"""Make variants in a folder, one after the other: quantize, inspect, measure, describe."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from artifact.manifest import Task, Variant
from runtimes.base import Inspection, Progress, Quantizer, Scheme
from runtimes.build.description import context_bytes, described_files, recipe_of
from runtimes.build.published import RECIPE, SOURCE, contents, copy_source, source_bytes
from runtimes.build.request import BuildRequest, Report, VariantRequest
from runtimes.build.source import Source
from runtimes.build.trials import Trials
from runtimes.errors import (
    BuildError,
    QuantizeError,
)
from runtimes.evaluation.comparison import Comparison
from runtimes.evaluation.quality import Evaluation, quality_of
from runtimes.predictions import Predictions
from runtimes.quantizing import UNQUANTIZED

if TYPE_CHECKING:
    from runtimes.evaluation.frames import EvaluationJob
    from runtimes.evaluation.tape import Tape


# With less space than this, the disk is taken for the cause of a failure.
_FREE_BYTES: Final = 16 << 20
# Growth that is not held against a variant: headers that name the scheme.
_HEADER_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Compared:
    """A variant with its measurements, and its comparison with the source."""

    variant: Variant
    comparison: Comparison


class VariantMaker:
    """Maker of variants in a folder.

    It keeps one quantizer per source, so that calibration data are computed once for all schemes.
    """

    def __init__(
        self,
        folder: Path,
        request: BuildRequest,
        task: Task,
        *,
        evaluation: Evaluation | None,
        scratch: Path,
        report: Report,
    ) -> None:
        """Take ``scratch`` as the folder for the sources' predictions."""
        self._folder = folder
        self._task = task
        self._context_length = request.context_length
        self._force = request.force
        self._evaluation = evaluation
        self._scratch = scratch
        self._report = report
        self._quantizers: dict[Path, Quantizer] = {}
        self._tapes: dict[Path, Tape] = {}
        self._trials = Trials(task, evaluation, scratch)

    def quantizer(self, source: Source) -> Quantizer:
        if source.path not in self._quantizers:
            self._quantizers[source.path] = source.runtime.quantizer()
        return self._quantizers[source.path]

    def make(self, request: VariantRequest, source: Source) -> Variant:
        """Quantize, inspect and describe a variant, without measuring it."""
        runtime = source.runtime
        folder = self._folder / request.name
        folder.mkdir()
        main = folder / f"model.{runtime.format}"
        progress = self._progress(request.name)
        published = request.how.name == SOURCE
        if published:
            progress("copying", 0.0)
            copy_source(source, request.how, main)
            progress("copying", 1.0)
        else:
            for name, path in source.side_files.items():
                shutil.copyfile(path, folder / name)
            self._quantize(source, request.how, main)
        # The made file is inspected, not the source: schemes leave some tensors as they are.
        inspection = runtime.inspector().inspect(main)
        paths = sorted(folder.iterdir())
        size = sum(path.stat().st_size for path in paths)
        if size > source_bytes(source) + _HEADER_BYTES and not self._force:
            raise QuantizeError(
                f"{request.how.name} makes {source.path.name} larger: {size:,} bytes instead of "
                f"{source_bytes(source):,}",
                advice="Deploy it as published (scheme `source`), or build with --force.",
            )
        context_length = self._context(inspection)
        return Variant(
            name=request.name,
            runtime=runtime.name,
            format=runtime.format,
            quantization=inspection.quantization if published else request.how.name,
            files=described_files(runtime, paths),
            memory_bytes=runtime.estimate_memory(inspection, size, context_length),
            context_length=context_length,
            context_bytes=context_bytes(runtime, inspection, size, context_length),
            parameters=inspection.parameters,
            decode_bytes=runtime.decode_bytes(inspection),
            matrices=sum(len(tensor.shape) > 1 for tensor in inspection.tensors),
            recipe="; ".join(
                filter(None, (RECIPE if published else recipe_of(request.how), source.changes))
            ),
            warnings=() if published else _warnings(source.inspection, request.how),
            **(contents(inspection) if published else {}),
        )

    def _quantize(self, source: Source, scheme: Scheme, main: Path) -> None:
        """Quantize; raise BuildError instead of QuantizeError if the disk may be the cause."""
        progress = self._progress(main.parent.name)
        try:
            self.quantizer(source).quantize(source.path, scheme, main, progress)
        except QuantizeError as error:
            # A full disk would fail every other scheme too, so that it must not be skipped.
            free = shutil.disk_usage(self._folder).free
            if free < _FREE_BYTES:
                raise BuildError(
                    f"{free:,} bytes are free in {self._folder.parent}: {error}",
                    advice="Free space on the disk, or build elsewhere with --out.",
                ) from error
            raise

    def drop(self, name: str) -> None:
        """Delete a variant's folder."""
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def tried(self, request: VariantRequest, variant: Variant, source: Source) -> Variant:
        """Run a variant and its source on a few inputs; return the variant with the findings."""
        progress = self._progress(variant.name)
        progress("trying", 0.0)
        files = self._files(variant)
        if request.how.name == SOURCE:
            found = self._trials.of_published(variant, source)
        else:
            found = self._trials.of_variant(variant, files, source)
        progress("trying", 1.0)
        return found

    def measured(self, variant: Variant, source: Source) -> Variant:
        """Return the variant with its quality, if there are evaluation data."""
        from runtimes.evaluation.process import evaluating

        if self._evaluation is None:
            return variant
        progress = self._progress(variant.name)
        progress("measuring", 0.0)
        job = self._job(variant, source, self._files(variant), self._evaluation)
        with evaluating(job, "the variant") as live:
            quality = quality_of(live, self._evaluation)
        progress("measuring", 1.0)
        return msgspec.structs.replace(variant, quality=quality)

    def compared(self, variant: Variant, source: Source) -> Compared:
        """Compare a variant with its source; return it with quality, divergence and memory.

        The source's predictions are kept for the next variant. Raises BuildError if there are no
        evaluation data.
        """
        from runtimes.evaluation.compare import compare

        evaluation = self._evaluation
        if evaluation is None:
            raise BuildError(
                "comparing variants needs evaluation data, and none were given",
                advice="Give evaluation data.",
            )

        found = compare(
            self._job(variant, source, source.files, evaluation),
            self._job(variant, source, self._files(variant), evaluation),
            evaluation,
            self._progress(variant.name),
            self._tape(source),
        )
        with_figures = msgspec.structs.replace(
            variant,
            quality=found.quality,
            divergence=found.divergence,
            measured_memory_bytes=found.memory_bytes,
        )
        return Compared(with_figures, found)

    def source_predictions(self) -> Iterator[Predictions]:
        """Replay the predictions of the first source whose tape is complete."""
        for tape in self._tapes.values():
            if tape.complete:
                return tape.replayed()
        return iter(())

    def _job(
        self, variant: Variant, source: Source, files: dict[str, Path], evaluation: Evaluation
    ) -> "EvaluationJob":
        from runtimes.evaluation.frames import EvaluationJob

        return EvaluationJob(
            runtime=source.runtime.name,
            files={name: str(path) for name, path in files.items()},
            task=self._task,
            context_length=variant.context_length,
            evaluation=str(evaluation.path),
        )

    def _tape(self, source: Source) -> "Tape":
        from runtimes.evaluation.tape import Tape

        if source.path not in self._tapes:
            self._tapes[source.path] = Tape(self._scratch / f"{len(self._tapes)}.tape")
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
                f"the context length is {context_length} tokens; the model was trained for "
                f"{trained}",
                advice=f"Give a --context-length of at most {trained}.",
            )
        return context_length


def _warnings(source: Inspection, scheme: Scheme) -> tuple[str, ...]:
    """Return a warning if the source was quantized before."""
    found = source.quantization
    if found in UNQUANTIZED or found == scheme.name:
        return ()
    warning = (
        f"quantized again, from {found} to {scheme.name}: the errors of both add up; the original "
        "weights would give a better variant"
    )
    return (warning,)
