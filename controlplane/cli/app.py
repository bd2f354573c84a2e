"""Lazily imported subcommands, and the one place where errors become messages."""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from artifact.errors import ArtifactError
from controlplane.cli.exit_codes import ExitCode, exit_code_of_error
from controlplane.errors import ControlPlaneError
from runtimes.errors import RuntimeFault


@dataclass(slots=True)
class GlobalOptions:
    """The global options. ``json`` may also be set by --json behind the subcommand."""

    context_path: Path
    json: bool = False


pass_settings = click.make_pass_decorator(GlobalOptions)


class RefusedError(click.ClickException):
    """A refused or failed command: one message, then the next step."""

    def __init__(
        self, message: str, *, advice: str = "", exit_code: ExitCode = ExitCode.REFUSED
    ) -> None:
        super().__init__(message)
        self.advice = advice
        self.code = exit_code
        # Click declares it for the class, and reads it from the instance.
        self.exit_code = int(exit_code)  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        click.echo(f"Error: {self.message}", file=file or sys.stderr)
        if self.advice:
            click.echo(f"  {self.advice}", file=file or sys.stderr)


class LazyGroup(click.Group):
    """Imports subcommands on use; ``commands_by_target``: name to (module:attribute, help)."""

    def __init__(
        self, *args: Any, commands_by_target: Mapping[str, tuple[str, str]], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.targets = commands_by_target

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.targets)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in self.targets:
            return None
        module, _, attribute = self.targets[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        _accept_json(command)
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the commands' help from the table, since listing must not import them all."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.targets.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ControlPlaneError, ArtifactError, RuntimeFault) as error:
            raise RefusedError(
                str(error), advice=error.advice, exit_code=exit_code_of_error(error)
            ) from error
        except BrokenPipeError:
            # Click ends quietly when the reader of a pipe has gone.
            raise
        except OSError as error:
            # Paths that cannot be written, full disks: a traceback would hide the path.
            where = f"{error.filename}: " if error.filename else ""
            raise RefusedError(
                f"{where}{error.strerror or error}",
                advice="Check the path, its permissions and the space on its disk.",
                exit_code=ExitCode.FAILED,
            ) from error
        except (KeyboardInterrupt, click.Abort) as error:
            # Click would print "Aborted!" and exit with 1, which reads as a failure of the command.
            # It turns the end of stdin at a prompt into Abort too.
            if isinstance(error.__context__, EOFError):
                raise RefusedError(
                    "a prompt got no answer: stdin has ended", exit_code=ExitCode.USAGE
                ) from error
            raise RefusedError("interrupted", exit_code=ExitCode.INTERRUPTED) from error


def _accept_json(command: click.Command) -> None:
    """Accept --json behind the subcommand too, where most people type it."""
    if isinstance(command, click.Group):
        for child in command.commands.values():
            _accept_json(child)
    elif not any("--json" in parameter.opts for parameter in command.params):
        command.params.append(
            click.Option(
                ["--json"],
                is_flag=True,
                expose_value=False,
                callback=_set_json,
                help="Print JSON instead of tables.",
            )
        )


def _set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    settings = ctx.find_object(GlobalOptions)
    if value and settings is not None:
        settings.json = True
