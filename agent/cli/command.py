"""Commands of flotilla-agent: enroll, run, status, bench."""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, TypeVar

import click

from agent.cli.parameters import Checked, LabelPair, Size
from agent.cli.status import format_status, read_status
from agent.config import (
    DEFAULT_GATEWAY,
    DataDir,
    DeviceName,
    Endpoint,
    create_data_dir,
    data_dir_errors,
    load_config,
)
from agent.errors import AgentError
from artifact.errors import ArtifactError

LEVELS: Final = ["debug", "info", "warning", "error"]

T = TypeVar("T")


def data_dir_option(command: Callable[..., T]) -> Callable[..., T]:
    """Add --data-dir."""
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="FLOTILLA_DATA_DIR",
        required=True,
        help="The directory with all state of this agent.",
    )(command)


def json_option(command: Callable[..., T]) -> Callable[..., T]:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


@click.group()
@click.version_option(package_name="flotilla")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
def cli(log_level: str) -> None:
    """Run AI models on this box as the control plane of its fleet assigns them."""
    logging.basicConfig(
        stream=sys.stderr,
        level=log_level.upper(),
        format="time=%(asctime)s level=%(levelname)s logger=%(name)s event=%(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )
    # uvicorn's messages are not structured and repeat our own events.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


@cli.command()
@click.option("--server", type=Checked("host:port", Endpoint))
@click.option(
    "--token",
    help="From `flotilla token create`; default: the credential `join-token` of systemd.",
)
@click.option("--name", type=Checked("device name", DeviceName))
@click.option("--label", "labels", type=LabelPair(), multiple=True, help="key=value; repeatable.")
@click.option(
    "--model-memory",
    type=Size(),
    default=0,
    help="Most memory of all model processes together; 0, the default: half of the box's memory.",
)
@click.option(
    "--disk-budget",
    type=Size(),
    default=0,
    help="Most disk space for all model files.",
)
@click.option("--gateway", default=DEFAULT_GATEWAY, show_default=True)
@click.option("--metered", is_flag=True, help="The link is paid by volume: send fewer messages.")
@click.option(
    "--recover",
    is_flag=True,
    help="For an enrolled box: get a new certificate and change nothing else. "
    "Needs --token, and --server if the server has moved.",
)
@data_dir_option
def enroll(
    *,
    server: str | None,
    token: str | None,
    name: str | None,
    labels: tuple[tuple[str, str], ...],
    model_memory: int,
    disk_budget: int,
    gateway: str,
    metered: bool,
    recover: bool,
    data_dir: Path,
) -> None:
    """Make this box a device of the fleet. Safe to run again after a lost answer."""
    # Imported in the commands: gRPC and cryptography take a second to load on a small box.
    from agent.enrollment.client import Application
    from agent.enrollment.client import enroll as apply
    from agent.enrollment.client import recover as apply_again
    from agent.enrollment.provisioning import join_token_credential
    from agent.hardware import read_facts
    from agent.link.renewal import LOOK_AGAIN_SECONDS

    token = token or join_token_credential()
    if token is None:
        raise click.UsageError("give --token, or the systemd credential `join-token`")
    paths = DataDir(data_dir.absolute())
    if recover:
        if name or labels:
            raise click.UsageError("--recover does not change --name or --label: leave them out")
        facts = read_facts(load_config(paths).model_memory_bytes)
        config = asyncio.run(apply_again(paths, token, facts, server=server))
        click.echo(f"{config.name} is device {config.device_id} again, at {config.server}")
        click.echo(f"A running agent follows within {LOOK_AGAIN_SECONDS:.0f} s, without a restart.")
        return
    if server is None or name is None:
        raise click.UsageError("give --server and --name")
    application = Application(
        server=server,
        token=token,
        name=name,
        labels=dict(labels),
        facts=read_facts(model_memory),
        gateway=gateway,
        model_memory_bytes=model_memory,
        disk_budget_bytes=disk_budget,
        metered=metered,
    )
    config = asyncio.run(apply(paths, application))
    click.echo(f"{config.name} is device {config.device_id}")


@cli.command()
@data_dir_option
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The owner's settings (YAML); with them the box enrols without a person.",
)
def run(data_dir: Path, settings_file: Path | None) -> None:
    """Run the agent until SIGTERM.

    With --settings, exit code 78 (EX_CONFIG) means that a person has to correct something.
    """
    asyncio.run(_run(DataDir(data_dir.absolute()), settings_file))


async def _run(data_dir: DataDir, settings_file: Path | None) -> None:
    from agent import daemon
    from agent.enrollment.provisioning import provision

    if settings_file is not None:
        try:
            await provision(data_dir, settings_file)
        except (AgentError, ArtifactError) as error:
            _show(error)
            sys.exit(os.EX_CONFIG)
    await daemon.run(data_dir)


@cli.command()
@data_dir_option
@json_option
def status(data_dir: Path, as_json: bool) -> None:
    """Show what this box serves and the state of its update."""
    found = read_status(DataDir(data_dir.absolute()))
    click.echo(json.dumps(found, indent=2) if as_json else format_status(found))


@cli.command()
@data_dir_option
@json_option
def bench(data_dir: Path, as_json: bool) -> None:
    """Measure memory, arithmetic, storage and each kind of weights on this box.

    Takes seconds, and replaces the stored measurement.
    """
    from agent.hardware import benchmark, read_facts
    from agent.hardware.report import report

    paths = DataDir(data_dir.absolute())
    create_data_dir(paths)
    budget = load_config(paths).model_memory_bytes if paths.config.exists() else 0
    facts = read_facts(budget)
    began = time.monotonic()
    with data_dir_errors(paths):
        measured = asyncio.run(benchmark(paths.facts, facts, force=True))
    seconds = time.monotonic() - began
    facts = replace(facts, benchmark=measured)
    if as_json:
        click.echo(json.dumps(asdict(facts) | {"benchmark_seconds": seconds}, indent=2))
        return
    click.echo(report(facts, seconds))


def main() -> None:
    """Run the command; exit code 1 after an error, 2 after wrong usage."""
    try:
        cli()
    except (AgentError, ArtifactError) as error:
        _show(error)
        sys.exit(1)


def _show(error: AgentError | ArtifactError) -> None:
    click.echo(f"error: {error}", err=True)
    if error.advice:
        click.echo(error.advice, err=True)
