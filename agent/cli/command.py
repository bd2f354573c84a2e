"""flotilla-agent: enroll, run, status, bench."""

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
from agent.cli.status import in_words, look
from agent.config import DEFAULT_GATEWAY, DataDir, DeviceName, Endpoint, load_config
from agent.errors import AgentError
from artifact.errors import ArtifactError

LEVELS: Final = ["debug", "info", "warning", "error"]

T = TypeVar("T")


def data_dir_option(command: Callable[..., T]) -> Callable[..., T]:
    """Where the agent keeps everything."""
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="FLOTILLA_DATA_DIR",
        required=True,
        help="Where this agent keeps everything.",
    )(command)


def json_option(command: Callable[..., T]) -> Callable[..., T]:
    """One JSON document instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


@click.group()
@click.version_option(package_name="flotilla")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
def cli(log_level: str) -> None:
    """Run AI models on this box as its fleet's control plane says."""
    logging.basicConfig(
        stream=sys.stderr,
        level=log_level.upper(),
        format="time=%(asctime)s level=%(levelname)s logger=%(name)s event=%(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )
    # Its lines are prose; ours say the same as events.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


@cli.command()
@click.option("--server", type=Checked("host:port", Endpoint))
@click.option(
    "--token",
    help="From `flotilla token create`; default: the credential `join-token` of systemd.",
)
@click.option("--name", type=Checked("device name", DeviceName))
@click.option("--label", "labels", type=LabelPair(), multiple=True, help="key=value; repeatable.")
@click.option("--model-memory", type=Size(), default=0, help="What one model may take.")
@click.option("--disk-budget", type=Size(), default=0, help="What all model files may take.")
@click.option("--gateway", default=DEFAULT_GATEWAY, show_default=True)
@click.option(
    "--recover",
    is_flag=True,
    help="For an enrolled box whose certificate has expired: a new one, and nothing else changes. "
    "Needs --token, and --server only when that has moved.",
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
    recover: bool,
    data_dir: Path,
) -> None:
    """Make this box a device of the fleet. Safe to run again after a lost reply."""
    from agent.enrollment.client import Application
    from agent.enrollment.client import enroll as apply
    from agent.enrollment.client import recover as apply_again
    from agent.enrollment.provisioning import join_token_credential
    from agent.hardware import read_facts

    token = token or join_token_credential()
    if token is None:
        raise click.UsageError("give a --token, or the credential `join-token` by systemd")
    where = DataDir(data_dir.absolute())
    if recover:
        if name or labels:
            raise click.UsageError("--recover keeps the box's name and labels")
        facts = read_facts(load_config(where).model_memory_bytes)
        config = asyncio.run(apply_again(where, token, facts, server=server))
        click.echo(f"{config.name} is device {config.device_id} again")
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
    )
    config = asyncio.run(apply(where, application))
    click.echo(f"{config.name} is device {config.device_id}")


@cli.command()
@data_dir_option
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The owner's settings (YAML); with them the box enrols by itself.",
)
def run(data_dir: Path, settings_file: Path | None) -> None:
    """Run the agent until SIGTERM.

    With --settings exit code 78 (EX_CONFIG) means that only a person can mend it.
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
    """Show what this box serves and what it is doing."""
    found = look(DataDir(data_dir.absolute()))
    click.echo(json.dumps(found, indent=2) if as_json else in_words(found))


@cli.command()
@data_dir_option
@json_option
def bench(data_dir: Path, as_json: bool) -> None:
    """Measure what this box could give: memory, arithmetic, storage, and each kind of weights.

    Takes seconds; what was kept of an earlier measurement is replaced.
    """
    from agent.hardware import benchmark, read_facts
    from agent.hardware.report import report

    where = DataDir(data_dir.absolute())
    where.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    budget = load_config(where).model_memory_bytes if where.config.exists() else 0
    facts = read_facts(budget)
    began = time.monotonic()
    measured = asyncio.run(benchmark(where.facts, facts, force=True))
    seconds = time.monotonic() - began
    facts = replace(facts, benchmark=measured)
    if as_json:
        click.echo(json.dumps(asdict(facts) | {"benchmark_seconds": seconds}, indent=2))
        return
    click.echo(report(facts, seconds))


def main() -> None:
    """The command; exit code 1 for what was refused or failed, 2 for misuse."""
    try:
        cli()
    except (AgentError, ArtifactError) as error:
        _show(error)
        sys.exit(1)


def _show(error: AgentError | ArtifactError) -> None:
    click.echo(f"error: {error}", err=True)
    if error.advice:
        click.echo(error.advice, err=True)
