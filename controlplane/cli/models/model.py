"""`flotilla model`: build a model version from source files, and inspect a file."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec

from artifact.manifest import Lineage, Task
from artifact.sizes import in_bytes
from controlplane.cli.app import GlobalOptions, RefusedError, pass_settings
from controlplane.cli.models.adapter import adapter_command
from controlplane.cli.models.interruption import interruptible
from controlplane.cli.models.recipe_file import load_recipe, parse_lineage
from controlplane.cli.models.variants import (
    lineage_of,
    print_variants,
    recipes_of,
    warnings_of,
)
from controlplane.cli.output import clean, note, print_fields, print_json, print_table
from runtimes.build import (
    MODEL_FILE,
    Attempt,
    BuildRequest,
    GoalsMissedError,
    VariantRequest,
    build,
    read_model,
)
from runtimes.build.source import Source, open_source

_VARIANT = re.compile(r"(?:(?P<name>[^=:]+)=)?(?:(?P<runtime>[^=:]+):)?(?P<scheme>[^=:]+)")


def _parse_variants(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[VariantRequest, ...]:
    """Parse NAME=RUNTIME:SCHEME, RUNTIME:SCHEME, or SCHEME, which is then the name too."""
    return tuple(_parse_variant(ctx, param, value) for value in values)


def _parse_variant(ctx: click.Context, param: click.Parameter, value: str) -> VariantRequest:
    match = _VARIANT.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not NAME=RUNTIME:SCHEME or SCHEME", ctx, param)
    scheme = match["scheme"]
    return VariantRequest(match["name"] or scheme, scheme, match["runtime"] or "")


def _parse_lineages(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[Lineage, ...]:
    try:
        return tuple(parse_lineage(value) for value in values)
    except msgspec.ValidationError as error:
        raise click.BadParameter(str(error), ctx, param) from error


@click.group()
def model() -> None:
    """Build, quantize and inspect models."""


model.add_command(adapter_command)


@model.command("build")
@click.argument(
    "sources", nargs=-1, type=click.Path(exists=True, path_type=Path), metavar="[SRC]..."
)
@click.option(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A recipe.yaml that says all of it, with candidates and goals; see docs/model-recipe.md.",
)
@click.option("--name", metavar="PUBLISHER/NAME", help="Name of the model.")
@click.option("--version", help="Version of the model; immutable once published.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    callback=_parse_variants,
    metavar="NAME=RUNTIME:SCHEME",
    help="A variant to make, for instance q4=llama_cpp:q4_k_m, or q4_k_m alone. Repeatable. "
    "SCHEME `source`, the default, deploys the files as they were published.",
)
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to make."
)
@click.option(
    "--eval",
    "evaluation",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure each variant on it: a text, or for a classifier an .npz with labels.",
)
@click.option("--compare", is_flag=True, help="Compare each with its source too; needs --eval.")
@click.option("--task", type=click.Choice([task.value for task in Task]), help="What it does.")
@click.option("--context-length", type=click.IntRange(1, 1 << 24), default=None, metavar="TOKENS")
@click.option(
    "--lineage",
    multiple=True,
    callback=_parse_lineages,
    metavar="RELATION:PUBLISHER/NAME@VERSION",
    help="The version it comes from, for instance finetune:acme/base@1; several of a merge.",
)
@click.option("--description", default="", help="One or two sentences for the manifest.")
@click.option(
    "--force",
    is_flag=True,
    help="Replace another model in the folder, and keep variants larger than their source.",
)
@pass_settings
def build_command(settings: GlobalOptions, /, *, recipe: Path | None, **options: Any) -> None:
    """Build a model version with its variants from one or more source files.

    SRC is a GGUF file, an ONNX file, or a folder with either; several hold the same weights.
    """
    request = _by_recipe(recipe, options) if recipe else _by_options(options)
    try:
        with interruptible() as check_interrupt:
            result = build(request, _Progress(check_interrupt).report)
    except GoalsMissedError as error:
        _print_attempts(settings, error.attempts)
        raise
    if settings.json:
        document = msgspec.to_builtins(result.model)
        print_json(
            {
                **document,
                "directory": str(result.directory),
                "unchanged": result.unchanged,
                "attempts": msgspec.to_builtins(result.attempts),
            }
        )
        return
    if result.attempts:
        _print_attempts(settings, result.attempts)
        click.echo()
    print_variants(result.model.variants)
    for variant in result.model.variants:
        for warning in variant.warnings:
            note(clean(f"{variant.name}: warning: {warning}"))
    done = "was there already, unchanged" if result.unchanged else "is built"
    note(f"{result.model.reference} {done}: {result.directory}")


def _by_options(options: dict[str, Any]) -> BuildRequest:
    missing = [name for name in ("sources", "name", "version") if not options[name]]
    if missing:
        word = {"sources": "SRC"}.get(missing[0], f"--{missing[0]}")
        raise click.UsageError(f"{word} is missing; a --recipe would say it.")
    if options["compare"] and not options["evaluation"]:
        raise click.UsageError("--compare needs --eval.")
    bases = options.pop("lineage")
    task = options.pop("task")
    return BuildRequest(
        task=Task(task) if task else None,
        context_length=options.pop("context_length") or 0,
        lineage=bases[0] if bases else None,
        also_from=bases[1:],
        **options,
    )


def _by_recipe(recipe: Path, options: dict[str, Any]) -> BuildRequest:
    """Combine this run's SRC, --name, --version, --out and --force with the recipe."""
    allowed = {"sources", "name", "version", "out", "force"}
    said = [name for name, value in options.items() if value and name not in allowed]
    if said:
        raise click.UsageError(f"The recipe says what {', '.join(sorted(said))} would.")
    request = load_recipe(recipe, options["out"])
    overrides = {name: options[name] for name in ("sources", "name", "version") if options[name]}
    request = replace(request, **overrides, force=options["force"])
    if not request.sources:
        raise click.UsageError("Neither the recipe nor the command line names a source.")
    return request


def _print_attempts(settings: GlobalOptions, attempts: Sequence[Attempt]) -> None:
    if settings.json:
        print_json({"attempts": msgspec.to_builtins(attempts)})
        return
    print_table(
        ["TRIED", "RUNTIME", "SCHEME", "SIZE", "OUTCOME", "WHY"],
        [
            [
                one.name,
                one.runtime,
                one.scheme,
                in_bytes(one.variant.size_bytes) if one.variant else "-",
                one.outcome,
                one.reason,
            ]
            for one in attempts
        ],
        empty="Nothing was tried.",
    )


@model.command("inspect")
@click.argument("path", type=click.Path(exists=True, path_type=Path), metavar="FILE")
@pass_settings
def inspect_command(settings: GlobalOptions, path: Path) -> None:
    """Show a model file's header, without loading it, or the contents of a built folder."""
    if (path / MODEL_FILE).is_file():
        _inspect_built(settings, path)
        return
    source = open_source(path)
    facts = _facts(source)
    if settings.json:
        tensors = msgspec.to_builtins(source.inspection.tensors)
        print_json({**facts, "metadata": source.inspection.metadata, "tensors": tensors})
        return
    shown = {key.replace("_", " "): str(value) for key, value in facts.items()}
    for key in ("size_bytes", "memory_bytes"):
        shown[key.replace("_", " ").removesuffix(" bytes")] = in_bytes(facts[key])
        del shown[key.replace("_", " ")]
    print_fields(shown)


def _inspect_built(settings: GlobalOptions, folder: Path) -> None:
    built = read_model(folder)
    if built is None:
        raise RefusedError(
            f"{folder / MODEL_FILE} is not the manifest of a model",
            advice="Build it again with `flotilla model build`.",
        )
    if settings.json:
        print_json(msgspec.to_builtins(built))
        return
    print_fields(
        {
            "model": built.reference,
            "task": built.task,
            "lineage": lineage_of(built),
            "description": built.description,
            "made": recipes_of(built.variants),
            "warnings": warnings_of(built.variants),
        }
    )
    click.echo()
    print_variants(built.variants)


def _facts(source: Source) -> dict[str, Any]:
    found = source.inspection
    paths = (source.path, *source.side_files.values())
    size_bytes = sum(path.stat().st_size for path in paths)
    return {
        "file": str(source.path),
        "runtime": source.runtime.name,
        "format": found.format,
        "task": found.task.value,
        "architecture": found.architecture,
        "parameters": found.parameters,
        "quantization": found.quantization,
        "context_length": found.context_length,
        "tensor_count": len(found.tensors),
        "size_bytes": size_bytes,
        "memory_bytes": source.runtime.estimate_memory(found, size_bytes, 0),
        "confinement": source.confinement,
    }


class _Progress:
    """Progress on stderr: one line per step, redrawn on a terminal."""

    def __init__(self, check_interrupt: Callable[[], None]) -> None:
        self._last = ("", "", -1)
        self._check_interrupt = check_interrupt

    def report(self, variant: str, what: str, done: float) -> None:
        self._check_interrupt()
        percent = int(done * 100)
        redraw = sys.stderr.isatty()
        if (variant, what, percent) == self._last or (not redraw and percent not in {0, 100}):
            return
        self._last = (variant, what, percent)
        line = clean(f"{variant}: {what} {percent} %")
        if redraw:
            click.echo(f"\r\033[K{line}", nl=percent == 100, err=True)  # noqa: PLR2004 - all of it
        elif percent == 0:
            click.echo(clean(f"{variant}: {what}"), err=True)
