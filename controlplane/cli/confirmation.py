"""Preview and confirmation of commands that cannot be undone or that change many devices."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from controlplane.cli.app import GlobalOptions, RefusedError
from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.output import clean, print_json

# Most names that a preview lists.
MAX_LISTED_NAMES = 20

yes_option = click.option("--yes", is_flag=True, help="Do it without asking.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what it would change, and change nothing."
)


def confirmed(command: Any) -> Any:
    """Add --yes and --dry-run, which ``confirm`` takes."""
    return yes_option(dry_run_option(command))


def confirm(
    settings: GlobalOptions,
    preview: Sequence[str],
    *,
    yes: bool,
    dry_run: bool = False,
    document: Mapping[str, Any] | None = None,
) -> bool:
    """Print the preview on stderr, and return True if the change was confirmed.

    Returns False for --dry-run, whose preview --json prints, with the details in ``document``.
    Raises RefusedError: with code USAGE if --yes is missing and there is no terminal to ask on,
    since a script's piped input is no consent; with code REFUSED if the answer is no.
    """
    if yes and not dry_run:
        return True
    if dry_run and settings.json:
        print_json({"dry_run": True, "preview": list(preview), **(document or {})})
        return False
    for line in preview:
        click.echo(clean(line, limit=2000), err=True)
    if dry_run:
        click.echo("Nothing was changed (--dry-run).", err=True)
        return False
    if not sys.stdin.isatty():
        raise RefusedError(
            "this needs a confirmation, and there is no terminal to ask on; nothing was changed",
            advice="Check what it changes, and repeat it with --yes.",
            exit_code=ExitCode.USAGE,
        )
    if not click.confirm("Go on?", err=True):
        raise RefusedError("nothing was changed", exit_code=ExitCode.REFUSED)
    return True


def listed(names: Sequence[str]) -> str:
    """Join names, of which at most MAX_LISTED_NAMES are shown."""
    shown = ", ".join(names[:MAX_LISTED_NAMES])
    remaining = len(names) - MAX_LISTED_NAMES
    return f"{shown} and {remaining} more" if remaining > 0 else shown


def counted(count: int, noun: str) -> str:
    """Return the count with its noun: "1 device", "3 devices"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
