"""Renewal of the device certificate: after two thirds of its life, and under a new authority."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from agent.backoff import Backoff
from agent.config import DataDir, load_config
from agent.errors import AgentError, DownloadError, IdentityError
from agent.identity.credentials import Credentials
from agent.link.connection import Connection
from agent.notary import Ask, expect
from agent.notary import questions as q
from artifact.errors import UntrustedError
from artifact.trust.statements import Authorities

log = logging.getLogger(__name__)

# The longest sleep, so that a correction of the clock takes effect within an hour.
LOOK_SECONDS: Final = 3600.0
# How often the disk is searched for the results of `flotilla-agent enroll --recover`.
LOOK_AGAIN_SECONDS: Final = 15.0
# A whole fleet learns of a new authority at the same moment: spread its renewals.
SPREAD_SECONDS: Final = 60.0


class Renewal:
    """The identity in use, renewed before it expires."""

    def __init__(
        self,
        data_dir: DataDir,
        identity: Credentials,
        connection: Connection,
        *,
        ask: Ask,
        name: str,
        replaced: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.identity = identity
        self._data_dir = data_dir
        self._connection = connection
        self._ask = ask
        self._name = name
        self._replaced = replaced
        self._now = now
        self._backoff = Backoff(5, 600)
        # Set when the authorities changed: the old authority's certificate stops working soon.
        self._due = asyncio.Event()

    async def run(self) -> None:
        """Renew the certificate whenever it is due, until cancelled."""
        while True:
            wait = (self.identity.renew_at() - self._now()).total_seconds()
            if wait > 0 and not self._due.is_set():
                await self._rest(min(wait, LOOK_SECONDS))
                if self._due.is_set():
                    await asyncio.sleep(random.uniform(0, SPREAD_SECONDS))  # noqa: S311 - no secret
                continue
            due = self._due.is_set()
            self._due.clear()
            try:
                await self.renew()
            except (AgentError, UntrustedError) as error:
                self._log(error)
                await self._rest(self._backoff.next_seconds())
                if due and not self.identity.is_of_newest_authority:
                    self._due.set()
            else:
                self._backoff.reset()
                if due:
                    await self._use_once()

    async def renew(self) -> None:
        """Obtain a new certificate and store it before using it.

        Authorities that come with it are adopted only if an authority trusted now endorses them.
        """
        request = expect(q.Signed, await self._ask(q.Request(name=self._name)))
        certificate_pem, offered = await self._connection.renew(request.data)
        adopted = await self._ask(
            q.Adopt(certificate_pem=certificate_pem, ca_pem=self.identity.ca_pem, offered=offered)
        )
        self._use(expect(q.Identified, adopted).credentials)

    async def _use_once(self) -> None:
        """Make a call with the new certificate: the server retires the old authority only then."""
        with contextlib.suppress(DownloadError):
            await self._connection.metadata("timestamp.json")

    async def offer(self, offered: Authorities) -> None:
        """Take the server's list of authorities: drop removed ones, renew under a new one."""
        known = self.identity
        if offered.bundle == known.ca_pem and known.is_of_newest_authority:
            return
        question = q.Follow(
            certificate_pem=known.certificate_pem, ca_pem=known.ca_pem, offered=offered
        )
        try:
            fresh = expect(q.Identified, await self._ask(question)).credentials
        except (UntrustedError, AgentError) as error:
            log.warning("authorities_refused error=%s", ascii(str(error)))
            return
        if self.identity is not known:
            # A renewal ran meanwhile: compare with the identity that it installed.
            await self.offer(offered)
            return
        if fresh.authority_sha256 != known.authority_sha256:
            log.info("authority_replaced sha256=%s", fresh.authority_sha256)
        if not fresh.is_of_newest_authority:
            self._due.set()
        elif fresh.ca_pem != known.ca_pem:
            self._use(fresh)

    async def adopt(self) -> bool:
        """Use the certificate and the server on the disk if `enroll --recover` replaced them.

        Returns True if there is another certificate.
        """
        self._follow_server()
        try:
            if self._data_dir.certificate.read_bytes() == self.identity.certificate_pem:
                return False
            stored = expect(q.Identified, await self._ask(q.WhoAmI())).credentials
        except (OSError, AgentError):
            # A recovery is writing it, or it is damaged: keep the one in use.
            return False
        self._use(stored)
        self._replaced()
        return True

    def _follow_server(self) -> None:
        """Move to the server that config.json names now."""
        try:
            endpoint = load_config(self._data_dir).device_endpoint
        except (OSError, AgentError):
            # Unreadable for now, or damaged: keep the server in use.
            return
        if endpoint != self._connection.endpoint:
            log.info("server_moved endpoint=%s", ascii(endpoint))
            self._connection.move(endpoint, self.identity)
            self._replaced()

    def _use(self, identity: Credentials) -> None:
        self.identity = identity
        self._connection.replace_identity(identity)
        log.info("certificate_renewed renew_at=%s", identity.renew_at().isoformat())

    async def _rest(self, seconds: float) -> None:
        """Sleep, but end early on a new certificate on the disk or a new authority."""
        while seconds > 0 and not self._due.is_set() and not await self.adopt():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(seconds, LOOK_AGAIN_SECONDS)):
                    await self._due.wait()
            seconds -= LOOK_AGAIN_SECONDS

    def _log(self, error: Exception) -> None:
        try:
            self.identity.check_valid(self._now())
        except IdentityError as invalid:
            log.warning("certificate_invalid error=%s advice=%r", invalid, invalid.advice)
        log.warning("certificate_not_renewed error=%s", ascii(str(error)))
