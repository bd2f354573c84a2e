"""The root command. Subcommands are imported when they run, so that `flotilla --help` is quick."""

from pathlib import Path

import click

from controlplane.cli.app import GlobalOptions, LazyGroup

DEFAULT_CONTEXT = Path("~/.config/flotilla/context.json")
COMMANDS = {
    "serve": ("controlplane.server.command:serve", "Run the control plane."),
    "keys": ("controlplane.cli.keys.command:keys", "Make and hold the publisher's signing keys."),
    "token": ("controlplane.cli.devices.token:token", "Join tokens that let new devices enrol."),
    "access": ("controlplane.cli.access.tokens:access", "API tokens of operators and systems."),
    "ca": ("controlplane.cli.access.authority:ca", "Show and replace the fleet's CA."),
    "context": ("controlplane.cli.access.context:context", "The file with server, token and CA."),
    "audit": ("controlplane.cli.access.audit:audit", "Who changed what, and when."),
    "model": ("controlplane.cli.models.model:model", "Build, quantize and inspect models."),
    "publish": ("controlplane.cli.publishing.publish:publish", "Sign and upload a release."),
    "release": ("controlplane.cli.publishing.release:release", "Published releases."),
    "rollout": (
        "controlplane.cli.rollouts.rollout:rollout",
        "Move devices to a release, in waves.",
    ),
    "device": ("controlplane.cli.devices.device:device", "Devices, and why they run what they do."),
    "telemetry": ("controlplane.cli.telemetry:telemetry", "Speed, latency, memory and energy."),
}


@click.group(
    cls=LazyGroup,
    commands_by_target=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Start with `flotilla serve --data-dir DIR`, then use the context that it writes: "
        "`flotilla --context DIR/admin.json device list`."
    ),
)
@click.option(
    "--context",
    "context_path",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="FLOTILLA_CONTEXT",
    metavar="FILE",
    help=f"Server, token and CA to use; default $FLOTILLA_CONTEXT or {DEFAULT_CONTEXT}.",
)
@click.option("--json", "json_output", is_flag=True, help="Print JSON instead of tables.")
@click.version_option(package_name="flotilla")
@click.pass_context
def cli(context: click.Context, context_path: Path | None, json_output: bool) -> None:
    """Roll AI models out to a fleet of edge boxes, and see what they give per watt."""
    path = context_path or DEFAULT_CONTEXT.expanduser()
    context.obj = GlobalOptions(context_path=path, json=json_output)
