"""Trials of variants: each runs on a few inputs and is compared with its source."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from artifact.manifest import Task, Trial, Variant
from runtimes.build.source import Source
from runtimes.errors import EvaluationKilledError, VariantFailedError
from runtimes.evaluation.quality import GENERATED, Evaluation

if TYPE_CHECKING:
    from runtimes.evaluation.frames import EvaluationJob
    from runtimes.evaluation.trials import SourceTrial

# Tokens of context: a full one may take gigabytes, which the few tokens of a trial do not need.
_CONTEXT: Final = 512
_MAX_WARNING: Final = 500


class Trials:
    """Runner of trials that keeps the outputs of each source for all its variants.

    A machine that cannot load a model, or lacks the memory, leaves a warning in the manifest.
    """

    def __init__(self, task: Task, evaluation: Evaluation | None, scratch: Path) -> None:
        """Take inputs from the evaluation data of tensor models; generate them otherwise."""
        uses_evaluation = evaluation is not None and task in {Task.CLASSIFICATION, Task.TENSOR}
        self._task = task
        self._evaluation = evaluation if uses_evaluation else None
        self._scratch = scratch
        self._of_sources: dict[Path, SourceTrial] = {}

    def of_published(self, variant: Variant, source: Source) -> Variant:
        """Try a source that is deployed as published; raise VariantFailedError if it cannot run."""
        if warned := _unloadable(variant, source):
            return warned
        tried = self._of_source(source, variant.context_length)
        failure = tried.failure
        if failure is not None and not isinstance(failure, EvaluationKilledError):
            raise VariantFailedError(str(failure), advice=failure.advice) from failure
        trial = Trial(inputs=self._inputs, values=tried.values, relative_error=0.0)
        return _with_findings(variant, tried, trial)

    def of_variant(self, variant: Variant, files: dict[str, Path], source: Source) -> Variant:
        """Try a variant and compare it with its source.

        Raises VariantFailedError if it cannot run, or its outputs are not finite where the source's
        are.
        """
        from runtimes.evaluation.trials import try_variant

        if warned := _unloadable(variant, source):
            return warned
        tried = self._of_source(source, variant.context_length)
        job = self._job(source.runtime.name, files, variant.context_length)
        job = msgspec.structs.replace(job, shapes=tried.shapes)
        return _with_findings(variant, tried, try_variant(job, tried, self._inputs))

    @property
    def _inputs(self) -> str:
        return self._evaluation.dataset if self._evaluation else GENERATED

    def _of_source(self, source: Source, context_length: int) -> "SourceTrial":
        from runtimes.evaluation.tape import Tape
        from runtimes.evaluation.trials import try_source

        if source.path not in self._of_sources:
            tape = Tape(self._scratch / f"{len(self._of_sources)}.trial")
            job = self._job(source.runtime.name, source.files, context_length)
            self._of_sources[source.path] = try_source(job, tape)
        return self._of_sources[source.path]

    def _job(self, runtime: str, files: dict[str, Path], context_length: int) -> "EvaluationJob":
        from runtimes.evaluation.frames import EvaluationJob

        return EvaluationJob(
            runtime=runtime,
            files={name: str(path) for name, path in files.items()},
            task=self._task,
            context_length=min(context_length, _CONTEXT),
            evaluation=str(self._evaluation.path) if self._evaluation else "",
            trial=True,
        )


def _unloadable(variant: Variant, source: Source) -> Variant | None:
    """Return the variant with a warning if this machine cannot load models of the runtime."""
    if source.runtime.version() is not None:
        return None
    return _with_warnings(
        variant, [f"not run at build: this machine cannot load {source.runtime.name}"]
    )


def _with_findings(variant: Variant, source: "SourceTrial", trial: Trial) -> Variant:
    compared = source.failure is None and not source.unmeasured
    found = msgspec.structs.replace(
        variant, trial=trial if compared else None, input_shapes=source.shapes
    )
    return _with_warnings(found, _warnings(source))


def _with_warnings(variant: Variant, warnings: Iterable[str]) -> Variant:
    cut = (warning[:_MAX_WARNING] for warning in warnings)
    return msgspec.structs.replace(variant, warnings=(*variant.warnings, *cut))


def _warnings(source: "SourceTrial") -> Iterator[str]:
    if source.failure is not None:
        yield f"not compared with its source, which did not run here: {source.failure}"
    if source.unmeasured:
        yield (
            f"not run at build, because {source.unmeasured}; give inputs as an .npz of evaluation "
            "data"
        )
    if source.infinite:
        yield (
            f"{source.infinite} of {source.infinite + source.values} outputs of the source are NaN "
            "or infinite on the trial's inputs"
        )
