"""Unattended enrolment, from the owner's settings file and a join token from systemd.

Safe on every start. A box that is not enrolled retries until a server answers. On an enrolled box
only the settings that the owner may change without the fleet follow the file.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from agent.backoff import Backoff
from agent.config import (
    DEFAULT_GATEWAY,
    MAX_CONFIG_BYTES,
    AgentConfig,
    DataDir,
    DeviceName,
    Endpoint,
    LabelValue,
    PowerModel,
    load_config,
    parse_size,
    save_config,
)
from agent.errors import InvalidConfigError, NotEnrolledError, ServerUnreachableError
from agent.hardware import read_facts
from agent.health import feed_watchdog
from agent.host.systemd import notify
from artifact.join_token import MAX_TOKEN_CHARACTERS
from artifact.manifest import Label
from artifact.yaml_text import YamlTextError, read_yaml

if TYPE_CHECKING:
    from agent.enrollment.client import Application

log = logging.getLogger(__name__)

CREDENTIAL: Final = "join-token"
FIRST_WAIT_SECONDS: Final = 1.0
MOST_WAIT_SECONDS: Final = 60.0

Sleep = Callable[[float], Awaitable[None]]


class OwnerSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The owner's file, agent.yaml. The default name is the host name."""

    server: Endpoint
    name: DeviceName | None = None
    labels: Annotated[dict[Label, LabelValue], Meta(max_length=64)] = {}
    gateway: Annotated[str, Meta(max_length=256)] = DEFAULT_GATEWAY
    # As in `--model-memory`; "0": half of the box's memory.
    model_memory: Annotated[str, Meta(max_length=32)] = "0"
    # As in `--disk-budget`; "0": all free space except a reserve.
    disk_budget: Annotated[str, Meta(max_length=32)] = "0"
    # Used only on a box without a power meter.
    power_model: PowerModel | None = None
    # The link is paid by volume.
    metered: bool = False


def load_settings(path: Path) -> OwnerSettings | None:
    """Read the owner's settings; None without a file. InvalidConfigError."""
    try:
        with path.open("rb") as source:
            data = source.read(MAX_CONFIG_BYTES)
        text = data.decode(errors="replace")
        settings = msgspec.convert(read_yaml(text).value or {}, OwnerSettings)
        for size in (settings.model_memory, settings.disk_budget):
            parse_size(size)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, YamlTextError) as error:
        raise InvalidConfigError(
            f"{path} is not valid: {ascii(str(error))[:500]}",
            advice="Correct it (docs/operations.md), then `systemctl restart flotilla-agent`.",
        ) from error
    return settings


def join_token_credential() -> str | None:
    """Read the join token from systemd's credentials; None if it is absent."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not directory:
        return None
    try:
        with (Path(directory) / CREDENTIAL).open("rb") as source:
            # One character more than the longest token, so that a longer file is refused as such.
            token = source.read(MAX_TOKEN_CHARACTERS + 1)
    except OSError:
        return None
    return token.decode(errors="replace").strip() or None


async def provision(
    data_dir: DataDir, settings_file: Path, *, sleep: Sleep = asyncio.sleep
) -> AgentConfig:
    """Return the configuration of the box, after enrolling it if necessary.

    Raises NotEnrolledError if the settings or the token are missing, InvalidConfigError, and what
    ``enroll`` raises for a wrong server or token: errors that need a person. Invalid settings do
    not keep an enrolled box from starting.
    """
    try:
        config = load_config(data_dir)
    except NotEnrolledError:
        settings = load_settings(settings_file)
        if settings is None:
            raise
        return await _enroll_patiently(data_dir, settings, sleep)
    try:
        settings = load_settings(settings_file)
    except InvalidConfigError as error:
        log.error("settings_ignored error=%s", ascii(str(error)))  # noqa: TRY400 - a typing error needs no traceback
        return config
    return config if settings is None else _follow(data_dir, config, settings)


def _follow(data_dir: DataDir, config: AgentConfig, settings: OwnerSettings) -> AgentConfig:
    """Apply the settings that the owner may change without the fleet."""
    followed = msgspec.structs.replace(
        config,
        gateway=settings.gateway,
        model_memory_bytes=parse_size(settings.model_memory),
        disk_budget_bytes=parse_size(settings.disk_budget),
        power_model=settings.power_model,
        metered=settings.metered,
    )
    if followed != config:
        save_config(data_dir, followed)
        log.info(
            "settings_applied gateway=%s model_memory_bytes=%d disk_budget_bytes=%d metered=%s",
            ascii(followed.gateway),
            followed.model_memory_bytes,
            followed.disk_budget_bytes,
            followed.metered,
        )
    return followed


async def _enroll_patiently(
    data_dir: DataDir, settings: OwnerSettings, sleep: Sleep
) -> AgentConfig:
    # Imported here: what checks certificates would otherwise stay in the daemon's memory.
    from agent.enrollment.client import enroll

    application = _application(settings)
    # Ready although not enrolled: a boot or an installation must not wait for a server.
    notify("READY=1", "STATUS=enrolling")
    # systemd watches from READY on, also while the box only waits for a server.
    watchdog = asyncio.create_task(feed_watchdog(_loop_turns))
    try:
        backoff = Backoff(FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS)
        while True:
            try:
                config = await enroll(data_dir, application)
            except ServerUnreachableError as error:
                wait = backoff.next_seconds()
                reason = ascii(str(error))[:300]
                log.warning("enrollment_waits seconds=%.1f error=%s", wait, reason)
                notify(f"STATUS=waiting to enrol: {reason}")
                await sleep(wait)
            else:
                log.info("enrolled name=%s device=%s", config.name, config.device_id)
                return config
    finally:
        watchdog.cancel()


async def _loop_turns() -> str:
    return ""


def _application(settings: OwnerSettings) -> "Application":
    from agent.enrollment.client import Application

    token = join_token_credential()
    if token is None:
        raise NotEnrolledError(
            "this box is not enrolled and there is no join token in systemd's credentials",
            advice="Write one from `flotilla token create` to /etc/credstore/flotilla.join-token, "
            "then `systemctl restart flotilla-agent`.",
        )
    memory = parse_size(settings.model_memory)
    return Application(
        server=settings.server,
        token=token,
        name=settings.name or _host_name(),
        labels=settings.labels,
        facts=read_facts(memory),
        gateway=settings.gateway,
        model_memory_bytes=memory,
        disk_budget_bytes=parse_size(settings.disk_budget),
        metered=settings.metered,
    )


def _host_name() -> str:
    name = socket.gethostname().partition(".")[0].lower()
    try:
        return msgspec.convert(name, DeviceName)
    except msgspec.ValidationError:
        raise InvalidConfigError(
            f"the host name {name!a} is not a valid device name", advice="Set `name` in agent.yaml."
        ) from None
