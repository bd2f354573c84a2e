"""`flotilla model adapter`: bind a LoRA file to the base that it was trained on."""

from pathlib import Path

import click
import msgspec

from artifact.manifest import split_reference
from artifact.sizes import in_bytes
from controlplane.cli.app import GlobalOptions, pass_settings
from controlplane.cli.models.interruption import interruptible
from controlplane.cli.output import note, print_fields, print_json
from runtimes.build.adapter import AdapterRequest, build_adapter


@click.command("adapter")
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--base",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder of the base, made by `flotilla model build`.",
)
@click.option("--name", required=True, metavar="PUBLISHER/NAME", help="Name of the adapter.")
@click.option("--version", required=True, help="Its version; immutable once published.")
@click.option(
    "--label", metavar="LABEL", help="What requests choose it by; the NAME, when not given."
)
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to make."
)
@click.option("--force", is_flag=True, help="Replace another adapter in the folder.")
@pass_settings
def adapter_command(
    settings: GlobalOptions,
    /,
    *,
    source: Path,
    base: Path,
    name: str,
    version: str,
    label: str | None,
    out: Path,
    force: bool,
) -> None:
    """Build an adapter for releases from SOURCE, a LoRA in GGUF.

    It is bound to every variant of the base whose tensors it fits.
    """
    own_name, _ = split_reference(f"{name}@{version}")
    request = AdapterRequest(
        source=source,
        base=base,
        label=label or own_name.partition("/")[2],
        name=own_name,
        version=version,
        out=out,
        force=force,
    )
    with interruptible():
        adapter = build_adapter(request)
    if settings.json:
        print_json({**msgspec.to_builtins(adapter), "directory": str(out)})
        return
    print_fields(
        {
            "adapter": f"{adapter.model}@{adapter.version}",
            "label": adapter.name,
            "size": in_bytes(adapter.file.size),
            "fits": f"{len(adapter.bases)} files of the base",
        }
    )
    note(f"{adapter.model}@{adapter.version} is built: {out}")
