"""Paths of the agent's data directory, and the configuration that enrolment writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from agent.errors import DataDirectoryError, InvalidConfigError, NotEnrolledError
from agent.storage.atomic_file import write_file
from artifact import sizes
from artifact.manifest import Label

MAX_CONFIG_BYTES: Final = 1 << 16
DEFAULT_GATEWAY: Final = "127.0.0.1:8090"
DeviceName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")]
LabelValue = Annotated[str, Meta(pattern=r"^[A-Za-z0-9]?([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")]
Endpoint = Annotated[str, Meta(pattern=r"^[^\s:/]+:[0-9]{1,5}\Z|^\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}\Z")]

Watts = Annotated[float, Meta(ge=0, le=10_000)]


class PowerModel(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The owner's figures for a box without a meter; energy from them is ``estimated``."""

    idle_watts: Watts
    full_watts: Watts

    def __post_init__(self) -> None:
        if self.idle_watts > self.full_watts:
            raise ValueError("idle_watts must not exceed full_watts")


class AgentConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the owner and results of the enrolment; ``config.json``."""

    device_id: Annotated[str, Meta(min_length=1, max_length=64)]
    name: DeviceName
    labels: dict[Label, LabelValue]
    # host:port of EnrollmentService and of DeviceService.
    server: Endpoint
    device_endpoint: Endpoint
    # Where local programs call: host:port (port 0: any free one), or unix:PATH.
    gateway: str = DEFAULT_GATEWAY
    # The most memory of all model processes together; 0: half of the box's memory.
    model_memory_bytes: Annotated[int, Meta(ge=0)] = 0
    # The most disk space of all model files; 0: all free space except a reserve.
    disk_budget_bytes: Annotated[int, Meta(ge=0)] = 0
    power_model: PowerModel | None = None
    # The link is paid by volume: send fewer messages (agent.link.pacing).
    metered: bool = False


@dataclass(frozen=True, slots=True)
class DataDir:
    """Paths of one agent's state. ``config`` is written last and marks the box as enrolled."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def key(self) -> Path:
        return self.root / "device.key"

    @property
    def certificate(self) -> Path:
        return self.root / "device.pem"

    @property
    def ca(self) -> Path:
        return self.root / "ca.pem"

    @property
    def image_root(self) -> Path:
        """The image repository's first root metadata, checked against the join token."""
        return self.root / "image-root.json"

    @property
    def director_root(self) -> Path:
        """The director repository's first root metadata, checked against the join token."""
        return self.root / "director-root.json"

    @property
    def metadata(self) -> Path:
        """Verified metadata of the image repository."""
        return self.root / "metadata"

    @property
    def files(self) -> Path:
        return self.root / "store"

    @property
    def journal(self) -> Path:
        return self.root / "journal.db"

    @property
    def telemetry(self) -> Path:
        return self.root / "telemetry.db"

    @property
    def facts(self) -> Path:
        """The last micro-benchmark, which a restart need not repeat."""
        return self.root / "benchmark.json"

    @property
    def measurements(self) -> Path:
        """Measurements of variants from probation."""
        return self.root / "measurements.json"

    @property
    def gateway(self) -> Path:
        """The address that the running gateway is bound to."""
        return self.root / "gateway.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"


def create_data_dir(data_dir: DataDir) -> None:
    """Create the data directory and its parents if they are missing; DataDirectoryError."""
    with data_dir_errors(data_dir):
        data_dir.root.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def data_dir_errors(data_dir: DataDir) -> Iterator[None]:
    """Raise an OSError of the block as DataDirectoryError."""
    try:
        yield
    except OSError as error:
        raise DataDirectoryError(
            f"{data_dir.root} cannot be used: {error}",
            advice="Name a --data-dir on a disk with free space that the agent's user may write.",
        ) from error


def load_config(data_dir: DataDir) -> AgentConfig:
    """Load the configuration of an enrolled box.

    Raises NotEnrolledError, InvalidConfigError or DataDirectoryError.
    """
    with data_dir_errors(data_dir):
        try:
            with data_dir.config.open("rb") as source:
                data = source.read(MAX_CONFIG_BYTES)
        except FileNotFoundError:
            raise NotEnrolledError(
                f"{data_dir.root} is not the data directory of an enrolled agent",
                advice="Run `flotilla-agent enroll` with this --data-dir first.",
            ) from None
    try:
        return msgspec.json.decode(data, type=AgentConfig)
    except msgspec.MsgspecError as error:
        raise InvalidConfigError(
            f"{data_dir.config} is not valid: {error}",
            advice="Correct it, or enrol the box again into an empty --data-dir.",
        ) from error


def save_config(data_dir: DataDir, config: AgentConfig) -> None:
    """Replace the configuration atomically; the first one makes the box enrolled."""
    write_file(data_dir.config, msgspec.json.format(msgspec.json.encode(config)))


def parse_size(text: str) -> int:
    """Parse ``64MiB``, ``2GiB`` or a number of bytes; InvalidConfigError."""
    try:
        return sizes.parse_size(text)
    except ValueError as error:
        raise InvalidConfigError(
            f"{text!r} is not a size", advice="Write it like 512MiB, 4GiB, or in bytes."
        ) from error
