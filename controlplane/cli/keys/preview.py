"""Preview of metadata that withdraws releases: which, and the devices that run them."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from flotilla.v1 import fleet_pb2, fleet_pb2_grpc

from artifact.trust.update import installable
from controlplane.cli.app import GlobalOptions, RefusedError
from controlplane.cli.client import MAX_LISTED, connect, every_page
from controlplane.cli.confirmation import MAX_LISTED_NAMES, confirm, listed


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A release that would be withdrawn, and the devices that run it now."""

    release: str
    devices: tuple[str, ...]


def confirm_withdrawal(
    settings: GlobalOptions, references: Iterable[str], *, yes: bool, dry_run: bool
) -> bool:
    """Show the releases with the devices that run them, and ask; see ``confirm``."""
    releases = list(references)
    unknown = ""
    try:
        plan = _running(settings, releases)
    except RefusedError as error:
        # A publisher's token may not be allowed to read devices: the releases are still shown.
        plan = [Withdrawn(release, ()) for release in releases]
        unknown = f"the devices that run them cannot be listed: {error.message}"
    preview = [
        f"withdraws {one.release}: "
        + (f"run by {listed(one.devices)}" if one.devices else "run by no device") * (not unknown)
        for one in plan[:MAX_LISTED_NAMES]
    ]
    if len(plan) > MAX_LISTED_NAMES:
        preview.append(f"and {len(plan) - MAX_LISTED_NAMES} more releases")
    preview.append(unknown or ("" if plan else "withdraws no release"))
    return confirm(
        settings,
        [line for line in preview if line],
        yes=yes,
        dry_run=dry_run,
        document={"withdraws": [asdict(one) for one in plan]},
    )


def withdrawn_by(before: Mapping[str, bytes], changed: Mapping[str, bytes]) -> list[str]:
    """Return the releases that devices accept before the roles are ``changed``, and not after."""
    paths = installable(dict(before)) - installable({**before, **changed})
    return sorted(reference_of(path) for path in paths)


def reference_of(path: str) -> str:
    """Return the reference of a target path, the inverse of ``target_path``."""
    name, _, version = path.removesuffix(".json").rpartition("/")
    return f"{name}@{version}"


def _running(settings: GlobalOptions, releases: list[str]) -> list[Withdrawn]:
    running: dict[str, list[str]] = {release: [] for release in releases}
    with connect(settings) as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        request = fleet_pb2.ListDevicesRequest()
        for device in every_page(stub.ListDevices, request, "devices", MAX_LISTED):
            if device.current_release in running:
                running[device.current_release].append(device.name)
    return [Withdrawn(release, tuple(names)) for release, names in running.items()]
