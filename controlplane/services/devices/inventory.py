"""Devices as operators see them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from artifact.manifest import split_reference
from controlplane.errors import NotFoundError
from controlplane.fleet import check_labels, parse_selector
from controlplane.services.access import Caller
from controlplane.services.mutations import Mutation, once
from controlplane.store import devices, receipts
from controlplane.store.database import Database, Transaction
from controlplane.store.devices import Device
from controlplane.store.paging import Page, PageRequest, next_token
from controlplane.store.receipts import Receipt

SHOWN_RECEIPTS: Final = 20


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device, and the variant per slot that it chose from the release that it serves."""

    device: Device
    variants: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A device and the receipt that explains what it runs; None before its first receipt."""

    view: DeviceView
    receipt: Receipt | None


class InventoryService:
    """Lists devices, explains what they run, and changes their labels."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def page(self, selector: str, request: PageRequest) -> Page[DeviceView]:
        """Return one page of the devices that the selector matches, sorted by name."""
        matches = parse_selector(selector).matches
        found: list[Device] = []
        after = request
        async with self._database.read() as tx:
            while True:
                batch = await devices.page(tx, after)
                found += [device for device in batch.items if matches(device.labels)]
                # One more than a page proves that there is a next page.
                if len(found) > request.size or not batch.next_token:
                    break
                after = PageRequest(request.size, batch.items[-1].name)
            shown = found[: request.size]
            views = await _views(tx, shown)
        more = len(found) > request.size or bool(batch.next_token)
        return Page(tuple(views), next_token(shown[-1].name) if more and shown else "")

    async def get(self, name_or_id: str) -> tuple[DeviceView, Sequence[Receipt]]:
        """Return a device with its newest receipts."""
        async with self._database.read() as tx:
            device = await devices.get(tx, name_or_id)
            (view,) = await _views(tx, [device])
            return view, await receipts.newest(tx, device.id, SHOWN_RECEIPTS)

    async def explain(
        self, name_or_id: str, *, release: str = "", generation: int = 0
    ) -> Explanation:
        """Explain the release that serves now; if there is none, the last attempt.

        With ``release`` explain its newest receipt, with ``generation`` (0: any) that receipt.
        Raises NotFoundError if the device has no such receipt.
        """
        if release:
            split_reference(release)
        async with self._database.read() as tx:
            device = await devices.get(tx, name_or_id)
            (view,) = await _views(tx, [device])
            if release or generation:
                wanted = await _requested(tx, device, release, generation)
                return Explanation(view, wanted)
            receipt = None
            if device.current_release:
                receipt = await receipts.newest_for_release(tx, device.id, device.current_release)
            if receipt is None:
                # A receipt without a release is not an attempt: a rollout that undid itself may
                # leave a device with the order to serve no release.
                newest = await receipts.newest(tx, device.id, SHOWN_RECEIPTS)
                receipt = next((each for each in newest if each.release), None)
            return Explanation(view, receipt)

    async def update_labels(
        self,
        caller: Caller,
        request_id: str,
        name_or_id: str,
        *,
        put: Mapping[str, str],
        remove: Sequence[str],
    ) -> DeviceView:
        arguments = {"device": name_or_id, "set": dict(put), "remove": sorted(remove)}

        async def act(tx: Transaction) -> str:
            device = await devices.get(tx, name_or_id)
            labels = {key: value for key, value in device.labels.items() if key not in remove}
            labels.update(put)
            check_labels(labels)
            await devices.set_labels(tx, device.id, labels)
            return device.id

        mutation = Mutation(caller.actor, request_id, "device.label", arguments, self._clock())
        done = await once(self._database, mutation, act)
        view, _ = await self.get(done.subject)
        return view


async def _requested(tx: Transaction, device: Device, release: str, generation: int) -> Receipt:
    if generation:
        found = await receipts.find(tx, device.id, generation)
    else:
        found = await receipts.newest_for_release(tx, device.id, release)
    if found is None or (release and found.release != release):
        wanted = " and ".join(
            part
            for part in (
                f"generation {generation}" if generation else "",
                f"release {release!r}" if release else "",
            )
            if part
        )
        raise NotFoundError(
            f"device {device.name!r} has no receipt for {wanted}",
            advice=f"`flotilla device show {device.name}` lists its receipts.",
        )
    return found


async def _views(tx: Transaction, shown: Sequence[Device]) -> list[DeviceView]:
    variants = await receipts.serving_variants(tx, [device.id for device in shown])
    return [DeviceView(device, variants.get(device.id, {})) for device in shown]
