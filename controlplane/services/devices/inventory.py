"""Devices as operators see them, and the tokens that let new ones in."""

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from artifact.join_token import JoinToken as PrintedToken
from artifact.join_token import encode_join_token
from controlplane.errors import ConflictError, InvalidInputError
from controlplane.fleet import check_labels, parse_selector
from controlplane.services.access import Caller, lifetime, secret_digest, shown_once
from controlplane.services.devices.enrollment import FIRST_ROOT
from controlplane.services.keys.server_keys import ServerKeys
from controlplane.services.mutations import Mutation, once
from controlplane.store import devices, join_tokens, receipts, trust_metadata
from controlplane.store.database import Database, Transaction
from controlplane.store.devices import Device
from controlplane.store.ids import new_id
from controlplane.store.join_tokens import JoinToken
from controlplane.store.paging import Page, PageRequest, next_token
from controlplane.store.receipts import Receipt

MAX_USES: Final = 100_000
SHOWN_RECEIPTS: Final = 20


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device, and the variant per slot that it chose of the release that serves now."""

    device: Device
    variants: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A device, and the receipt that tells why it runs what it runs; None before its first."""

    view: DeviceView
    receipt: Receipt | None


@dataclass(frozen=True, slots=True)
class NewJoinToken:
    """A join token just made, and the text that a new box is given."""

    token: JoinToken
    secret: str


class FleetService:
    """What operators ask of the fleet."""

    def __init__(self, database: Database, keys: ServerKeys, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock

    async def page(self, selector: str, request: PageRequest) -> Page[DeviceView]:
        """Devices that the selector matches, by name."""
        matches = parse_selector(selector).matches
        found: list[Device] = []
        after = request
        async with self._database.read() as tx:
            while True:
                batch = await devices.page(tx, after)
                found += [device for device in batch.items if matches(device.labels)]
                if len(found) > request.size or not batch.next_token:
                    break
                after = PageRequest(request.size, batch.items[-1].name)
            shown = found[: request.size]
            views = await _views(tx, shown)
        more = len(found) > request.size or bool(batch.next_token)
        return Page(tuple(views), next_token(shown[-1].name) if more and shown else "")

    async def get(self, name_or_id: str) -> tuple[DeviceView, Sequence[Receipt]]:
        """A device with its newest receipts."""
        async with self._database.read() as tx:
            device = await devices.get(tx, name_or_id)
            (view,) = await _views(tx, [device])
            return view, await receipts.newest(tx, device.id, SHOWN_RECEIPTS)

    async def explain(self, name_or_id: str) -> Explanation:
        """About what serves now, or, when nothing does, about the last attempt."""
        async with self._database.read() as tx:
            device = await devices.get(tx, name_or_id)
            (view,) = await _views(tx, [device])
            receipt = None
            if device.current_release:
                receipt = await receipts.newest_for_release(tx, device.id, device.current_release)
            if receipt is None:
                # To serve nothing was no attempt: a rollout that undid itself leaves a device so.
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

    async def create_join_token(
        self,
        caller: Caller,
        request_id: str,
        *,
        uses: int,
        lifetime_seconds: float,
        labels: dict[str, str],
    ) -> NewJoinToken:
        """ConflictError before the image repository has a root, which the token must name."""
        now = self._clock()
        if not 1 <= uses <= MAX_USES:
            raise InvalidInputError(
                f"{uses} uses are not within 1 to {MAX_USES}", advice="Give --uses."
            )
        check_labels(labels)
        secret = secrets.token_urlsafe(24)
        token = JoinToken(
            id=new_id(now),
            secret_sha256=secret_digest(secret),
            uses_left=uses,
            created_at=now,
            expires_at=lifetime(lifetime_seconds, now),
            revoked=False,
            labels=labels,
        )
        async with self._database.read() as tx:
            root = await trust_metadata.file(tx, FIRST_ROOT)
        if root is None:
            raise ConflictError(
                "there is no image repository yet, whose root a join token must name",
                advice="Run `flotilla keys init` first.",
            )

        async def act(tx: Transaction) -> str:
            await join_tokens.add(tx, token)
            return token.id

        arguments = {"uses": uses, "lifetime_seconds": lifetime_seconds, "labels": labels}
        mutation = Mutation(caller.actor, request_id, "join-token.create", arguments, now)
        done = await once(self._database, mutation, act)
        if done.repeated:
            raise shown_once("join token", done.subject)
        printed = PrintedToken(
            secret=secret,
            ca=self._keys.authorities.current.sha256,
            root=hashlib.sha256(root).hexdigest(),
            director=hashlib.sha256(self._keys.director.first_root).hexdigest(),
        )
        return NewJoinToken(token, encode_join_token(printed))

    async def list_join_tokens(self, request: PageRequest) -> Page[JoinToken]:
        async with self._database.read() as tx:
            return await join_tokens.page(tx, request)

    async def revoke_join_token(self, caller: Caller, request_id: str, token_id: str) -> JoinToken:
        async def act(tx: Transaction) -> str:
            token = await join_tokens.get(tx, token_id)
            await join_tokens.revoke(tx, token.id)
            return token.id

        mutation = Mutation(
            caller.actor, request_id, "join-token.revoke", {"id": token_id}, self._clock()
        )
        done = await once(self._database, mutation, act)
        async with self._database.read() as tx:
            return await join_tokens.get(tx, done.subject)


async def _views(tx: Transaction, shown: Sequence[Device]) -> list[DeviceView]:
    variants = await receipts.serving_variants(tx, [device.id for device in shown])
    return [DeviceView(device, variants.get(device.id, {})) for device in shown]
