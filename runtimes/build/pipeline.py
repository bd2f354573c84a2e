"""Turn source files into a model version: make, measure and describe each variant."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from artifact.manifest import Task
from runtimes.build.description import check_names, described
from runtimes.build.expected import write_expected
from runtimes.build.folder import (
    EXPECTED_FILE,
    MODEL_FILE,
    REPORT_FILE,
    check_destination,
    half_made,
    is_whole,
    made_of,
    put_in_place,
    read_model,
    same_model,
)
from runtimes.build.inputs import digest_of_inputs
from runtimes.build.published import SOURCE, default_variants
from runtimes.build.request import (
    Attempt,
    BuildRequest,
    BuildResult,
    Report,
    VariantRequest,
)
from runtimes.build.search import Search, VariantCandidate, all_schemes, check_search
from runtimes.build.source import Source, open_source, servable
from runtimes.build.variants import VariantMaker
from runtimes.errors import BuildError
from runtimes.evaluation.quality import read_evaluation


def build(request: BuildRequest, report: Report) -> BuildResult:
    """Build a model version.

    Raises BuildError, QuantizeError, UnsafeFileError or LoadError; the destination is unchanged
    then.
    """
    check_names(request)
    check_search(request)
    check_destination(request)
    sources = [open_source(path) for path in request.sources]
    task = request.task or _common_task(sources)
    candidates = _candidates(request, sources)
    # Embeddings have no quality by themselves: it is their cosine to the source's.
    compares = request.compare or bool(request.evaluation and task is Task.EMBEDDING)
    by_recipe = bool(request.goals or compares)
    inputs = ""
    again = False
    if by_recipe:
        inputs = digest_of_inputs(request, sources, [one.request for one in candidates])
        again = made_of(request.out, inputs)
        existing = read_model(request.out)
        if again and existing and not request.force and is_whole(request.out, existing):
            return BuildResult(existing, request.out, unchanged=True)
    evaluation = read_evaluation(request.evaluation, task) if request.evaluation else None
    with half_made(request.out) as folder:
        # Beside the result, because predictions of a source may exceed a small /tmp.
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch:
            maker = VariantMaker(
                folder,
                request,
                task,
                evaluation=evaluation,
                scratch=Path(scratch),
                report=report,
            )
            search = Search(maker, request, compares=by_recipe)
            kept = search.run(_servable(candidates, Path(scratch)))
            if compares and evaluation is not None and task is Task.EMBEDDING:
                write_expected(folder / EXPECTED_FILE, evaluation, maker.source_predictions())
        if not kept:
            raise search.failure()
        if by_recipe:
            _write_report(folder, inputs, search.attempts)
        # A plain build reports its attempts only if it skipped one.
        attempts = search.attempts if by_recipe or search.errors else ()
        model = described(request, task, kept)
        data = msgspec.json.format(msgspec.json.encode(model), indent=1)
        (folder / MODEL_FILE).write_bytes(data)
        # By recipe, the report's digest of inputs has decided above.
        unchanged = not by_recipe and same_model(request.out, data)
        if not unchanged:
            put_in_place(folder, request, replace=request.force or again)
        return BuildResult(model, request.out, unchanged, tuple(attempts))


def _write_report(folder: Path, inputs: str, attempts: Sequence[Attempt]) -> None:
    document = {"inputs": inputs, "attempts": msgspec.to_builtins(attempts)}
    data = msgspec.json.format(msgspec.json.encode(document), indent=1)
    (folder / REPORT_FILE).write_bytes(data)


def _common_task(sources: Sequence[Source]) -> Task:
    tasks = {source.inspection.task for source in sources}
    if len(tasks) != 1:
        raise BuildError(
            f"the sources have different tasks: {', '.join(sorted(tasks))}",
            advice="Give sources of the same weights, or choose a task with --task.",
        )
    return tasks.pop()


def _candidates(request: BuildRequest, sources: Sequence[Source]) -> list[VariantCandidate]:
    """Return the requested variants, every scheme for a search, or else the sources themselves."""
    if request.variants:
        return [VariantCandidate(one, _choose_source(one, sources)) for one in request.variants]
    if request.search:
        return list(all_schemes(sources, request))
    return [
        VariantCandidate(one, source)
        for one, source in zip(default_variants(sources), sources, strict=True)
    ]


def _servable(candidates: Sequence[VariantCandidate], scratch: Path) -> list[VariantCandidate]:
    """Replace sources that devices cannot serve by rewritten copies, one for each source."""
    copies: dict[Path, Source] = {}
    for number, source in enumerate(one.source for one in candidates):
        if source.path not in copies:
            folder = scratch / f"source-{number}"
            folder.mkdir()
            copies[source.path] = servable(source, folder)
    return [replace(one, source=copies[one.source.path]) for one in candidates]


def _choose_source(variant: VariantRequest, sources: Sequence[Source]) -> Source:
    fitting = [
        source
        for source in sources
        if variant.runtime in {"", source.runtime.name}
        and variant.how.name in (SOURCE, *source.runtime.quantizer().schemes)
    ]
    if len(fitting) == 1:
        return fitting[0]
    known = "; ".join(
        f"{source.runtime.name}: {', '.join(source.runtime.quantizer().schemes)}"
        for source in sources
    )
    raise BuildError(
        f"variant {variant.name!r} ({variant.runtime or 'any runtime'}:{variant.how.name}) fits "
        f"{len(fitting)} of the sources",
        advice=f"Write NAME=RUNTIME:SCHEME for one of them. The sources allow {known}.",
    )
