"""A live fleet follows a change of its certificate authority, and no box is lost.

Uses a real control plane and the agents' link over TLS. Rules for accepting an authority:
tests/artifact/trust/test_authority.py.
"""

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import grpc
import pytest
from asking import asking, signed
from click.testing import CliRunner, Result
from control_plane import Clock, Plane, Publisher, request_id, running_plane
from control_plane import Life as Stream
from cryptography import x509
from flotilla.v1 import access_pb2, device_pb2, fleet_pb2

from agent.backoff import Backoff
from agent.config import DataDir, load_config
from agent.enrollment.client import Application, enroll, recover
from agent.errors import IdentityError
from agent.identity import keys as identities
from agent.identity.keys import load_identity, make_or_load_key, save_certificate, signing_request
from agent.link import connection as connections
from agent.link import renewal as renewals
from agent.link import stream as streams
from agent.link.connection import Connection
from agent.link.renewal import Renewal
from agent.link.stream import ControlPlaneStream
from agent.storage.atomic_file import write_file
from agent.telemetry import TelemetryQueue
from artifact.device_facts import DeviceFacts
from artifact.errors import UntrustedError
from artifact.trust.authority import digest, issuer_of
from artifact.trust.statements import Authorities
from controlplane.cli.command import cli
from controlplane.cli.exit_codes import ExitCode
from controlplane.services.keys.authority_files import AuthorityFiles
from tests.agent.box import Life, World
from tests.agent.box import eventually as soon
from tests.agent.tls import Authority

METADATA = device_pb2.FetchMetadataRequest(name="timestamp.json")
FACTS = DeviceFacts(
    architecture="x86_64",
    cpu_model="test",
    isa=(),
    cores=2,
    memory_bytes=1 << 30,
    model_memory_bytes=1 << 20,
)


async def eventually(ready: Callable[[], object]) -> None:
    """Wait until a condition holds, long enough for handshakes and retries on a slow machine."""
    await soon(ready, 60)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the delays that spread load over minutes."""
    monkeypatch.setattr(renewals, "SPREAD_SECONDS", 0.0)
    monkeypatch.setattr(renewals, "LOOK_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(connections, "OLD_CHANNEL_SECONDS", 0.0)
    monkeypatch.setattr(streams, "OPENING_SECONDS", 2.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def plane(tmp_path: Path, clock: Clock) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path / "server", clock) as plane:
        await Publisher(plane).initialise()
        yield plane


@contextlib.asynccontextmanager
async def restarted(plane: Plane) -> AsyncIterator[Plane]:
    """Run a stopped server again on the same ports."""
    ports = {"public": plane.endpoints.public, "device": plane.endpoints.device}
    async with running_plane(plane.config.data_dir, plane.clock, **ports) as again:
        yield again


@dataclass
class Box:
    """The link of an enrolled box, and its dependencies."""

    data_dir: DataDir
    renewal: Renewal
    link: ControlPlaneStream
    name: str

    @property
    def trusted(self) -> list[str]:
        """Return the digests of the authorities on its disk, newest first."""
        bundle = x509.load_pem_x509_certificates(self.data_dir.ca.read_bytes())
        return [digest(certificate) for certificate in bundle]

    def is_on(self, bundle: bytes) -> Callable[[], bool]:
        """Return whether it trusts exactly these and uses a certificate of the newest."""
        return lambda: (
            self.data_dir.ca.read_bytes() == bundle
            and self.renewal.identity.ca_pem == bundle
            and load_identity(self.data_dir).credentials.is_of_newest_authority
            and self.link.connected
        )


@contextlib.asynccontextmanager
async def running_box(root: Path) -> AsyncIterator[Box]:
    """Run the daemon of an enrolled box until the block ends."""
    data_dir = DataDir(root)
    config = load_config(data_dir)
    identity = load_identity(data_dir).credentials
    telemetry = TelemetryQueue(root / "telemetry.db", "boot-1")
    async with Life(World(root)) as life:
        connection = Connection(config.device_endpoint, identity)
        renewal = Renewal(data_dir, identity, connection, ask=asking(data_dir), name=config.name)
        link = ControlPlaneStream(
            connection,
            life.engine,
            life.journal,
            telemetry,
            facts=lambda: FACTS,
            identity=lambda: renewal.identity,
            sign=partial(signed, data_dir),
            agent_version="1",
            offered=renewal.offer,
            backoff=Backoff(0.01, 0.05),
            refused_backoff=Backoff(0.01, 0.05),
        )
        tasks = [asyncio.create_task(link.run()), asyncio.create_task(renewal.run())]
        try:
            yield Box(data_dir, renewal, link, config.name)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await connection.close()
            telemetry.close()


async def token(plane: Plane) -> str:
    request = fleet_pb2.CreateJoinTokenRequest(
        request_id=request_id(), uses=5, lifetime_seconds=3600
    )
    return str((await plane.fleet().CreateJoinToken(request)).secret)


async def enrolled(plane: Plane, root: Path, secret: str = "") -> Path:
    """Enrol a box and return its data directory."""
    application = Application(
        server=str(plane.endpoints.public),
        token=secret or await token(plane),
        name=root.name,
        labels={},
        facts=FACTS,
        gateway="127.0.0.1:0",
        model_memory_bytes=1 << 20,
    )
    await enroll(DataDir(root), application)
    return root


async def flotilla(plane: Plane, *arguments: str, context: Path | None = None) -> Result:
    path = context or plane.config.data_dir / "admin.json"
    command = ["--context", str(path), *arguments]
    return await asyncio.to_thread(CliRunner().invoke, cli, command)


async def done(plane: Plane, *arguments: str, context: Path | None = None) -> str:
    result = await flotilla(plane, *arguments, context=context)
    assert result.exit_code == 0, result.output
    return result.output


async def retired(plane: Plane, *options: str) -> None:
    """Retire the old authority once the last box has used its new certificate."""
    async with asyncio.timeout(15):
        while (await flotilla(plane, "ca", "retire", *options)).exit_code:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.05)


async def actions(plane: Plane) -> list[str]:
    answer = await plane.access().ListAuditEvents(access_pb2.ListAuditEventsRequest())
    return [event.action for event in answer.events]


async def opens(plane: Plane, ca_pem: bytes, key_pem: bytes, certificate_pem: bytes) -> str:
    """Return the status of a call with this certificate."""
    credentials = grpc.ssl_channel_credentials(ca_pem, key_pem, certificate_pem)
    channel = plane.keep(grpc.aio.secure_channel(str(plane.endpoints.device), credentials))
    call = channel.unary_unary("/flotilla.v1.DeviceService/FetchMetadata")
    try:
        await call(METADATA.SerializeToString(), timeout=15)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_a_connected_box_follows_and_the_old_authority_ends(
    plane: Plane, tmp_path: Path
) -> None:
    async with running_box(await enrolled(plane, tmp_path / "box-1")) as box:
        await eventually(lambda: box.link.connected)
        before, first = load_identity(box.data_dir).credentials, plane.ca_pem
        await done(plane, "ca", "rotate")
        both = plane.ca_pem
        assert both.endswith(first)
        await eventually(box.is_on(both))
        # Both are accepted during the change.
        for identity in (before, load_identity(box.data_dir).credentials):
            parts = identity.key_pem, identity.certificate_pem
            assert await opens(plane, both, *parts) in {"OK", "PERMISSION_DENIED"}
        await retired(plane)
        alone = plane.ca_pem
        assert alone + first == both
        await eventually(box.is_on(alone))
        assert await opens(plane, alone, before.key_pem, before.certificate_pem) == "UNAVAILABLE"
        # A client that trusts only the old authority refuses this server.
        now = load_identity(box.data_dir).credentials
        assert await opens(plane, first, now.key_pem, now.certificate_pem) == "UNAVAILABLE"
        assert {"authority.rotate", "authority.retire"} <= set(await actions(plane))


async def test_both_steps_may_be_asked_for_again(plane: Plane) -> None:
    await done(plane, "ca", "rotate")
    both = plane.ca_pem
    await done(plane, "ca", "rotate")
    assert plane.ca_pem == both
    await done(plane, "ca", "retire")
    alone = plane.ca_pem
    await done(plane, "ca", "retire")
    assert plane.ca_pem == alone
    asked = await actions(plane)
    assert (asked.count("authority.rotate"), asked.count("authority.retire")) == (1, 1)
    keys = {path.name for path in (plane.config.data_dir / "keys").glob("ca*")}
    assert keys == {"ca-2.key", "ca-2.pem"}


async def test_a_box_that_was_off_while_it_began_is_waited_for(
    plane: Plane, tmp_path: Path
) -> None:
    root = await enrolled(plane, tmp_path / "box-1")
    await done(plane, "ca", "rotate")
    refused = await flotilla(plane, "ca", "retire")
    assert refused.exit_code == ExitCode.REFUSED
    assert "1 active device(s) have no certificate of the new authority yet: box-1" in (
        refused.output
    )
    shown = await done(plane, "ca", "show")
    assert "0 of 1 active" in shown
    assert "box-1" in shown
    told = json.loads(await done(plane, "ca", "show", "--json"))
    assert (told["moved"], told["waiting"]) == (0, 1)
    assert told["waiting_devices"][0]["name"] == "box-1"
    assert told["authorities"]["current_pem"].encode() in plane.ca_pem
    async with running_box(root) as box:
        await eventually(box.is_on(plane.ca_pem))
        await retired(plane)
        await eventually(box.is_on(plane.ca_pem))


async def test_a_box_that_missed_all_of_it_comes_back_with_a_new_token(tmp_path: Path) -> None:
    clock = Clock(timedelta(days=-40))
    days = {"server_certificate_days": 200, "device_certificate_days": 200}
    async with running_plane(tmp_path / "server", clock, **days) as plane:
        await Publisher(plane).initialise()
        root = await enrolled(plane, tmp_path / "box-1")
        device_id = load_config(DataDir(root)).device_id
        await done(plane, "ca", "rotate")
        assert (await flotilla(plane, "ca", "retire", "--leave-silent", "30d")).exit_code == 3
        clock.ahead = timedelta()
        await done(plane, "ca", "retire", "--leave-silent", "30d")
        async with running_box(root) as box:
            await eventually(lambda: "enroll --recover" in box.link.problem)
            assert "not signed by an authority that this box trusts" in box.link.problem
            assert not box.link.connected
            await recover(box.data_dir, await token(plane), FACTS)
            # The daemon takes it over without a command.
            await eventually(box.is_on(plane.ca_pem))
            assert load_config(box.data_dir).device_id == device_id


async def test_a_box_is_seen_to_have_followed_before_its_stream_is_replaced(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "OLD_CHANNEL_SECONDS", 600.0)
    async with running_box(await enrolled(plane, tmp_path / "box-1")) as box:
        await eventually(lambda: box.link.connected)
        await done(plane, "ca", "rotate")
        await eventually(box.is_on(plane.ca_pem))
        await retired(plane)
        await eventually(box.is_on(plane.ca_pem))


async def test_a_token_of_before_admits_until_the_end_and_a_new_one_at_once(
    plane: Plane, tmp_path: Path
) -> None:
    before = await token(plane)
    await done(plane, "ca", "rotate")
    during = await token(plane)
    both = plane.ca_pem
    for name, secret in (("old-token", before), ("new-token", during)):
        root = await enrolled(plane, tmp_path / name, secret)
        assert DataDir(root).ca.read_bytes() == both
        assert load_identity(DataDir(root)).credentials.is_of_newest_authority
    await done(plane, "ca", "retire")
    root = await enrolled(plane, tmp_path / "late", during)
    assert DataDir(root).ca.read_bytes() == plane.ca_pem
    with pytest.raises(IdentityError, match="the join token names"):
        await enrolled(plane, tmp_path / "too-late", before)


async def test_a_server_that_restarts_between_the_steps_goes_on(
    tmp_path: Path, clock: Clock
) -> None:
    async with running_plane(tmp_path / "server", clock) as plane:
        await Publisher(plane).initialise()
        root = await enrolled(plane, tmp_path / "box-1")
        await done(plane, "ca", "rotate")
        both = plane.ca_pem
    async with running_box(root) as box:
        async with restarted(plane) as second:
            await eventually(box.is_on(both))
            assert second.ca_pem == both
        async with restarted(second) as third:
            await retired(third)
            alone = third.ca_pem
        async with restarted(third) as fourth:
            await eventually(box.is_on(alone))
            assert fourth.ca_pem == alone


@pytest.mark.parametrize("step", ["rotate", "retire"])
async def test_a_server_killed_after_the_audit_event_does_the_step_when_asked_again(
    tmp_path: Path, clock: Clock, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_plane(tmp_path / "server", clock) as plane:
        await Publisher(plane).initialise()
        if step == "retire":
            await done(plane, "ca", "rotate")
        before = plane.ca_pem
        effect = {"rotate": "begin", "retire": "end"}[step]
        monkeypatch.setattr(AuthorityFiles, effect, killed)
        assert (await flotilla(plane, "ca", step)).exit_code == 1
        assert f"authority.{step}" in await actions(plane)
    monkeypatch.undo()
    async with restarted(plane) as again:
        assert again.ca_pem == before
        await done(again, "ca", step)
        assert again.ca_pem != before


def killed(*_: object) -> bool:
    raise RuntimeError("killed")


async def test_an_operator_follows_in_time_or_is_told_how(plane: Plane, tmp_path: Path) -> None:
    diligent, late = tmp_path / "diligent.json", tmp_path / "late.json"
    for path in (diligent, late):
        shutil.copy(plane.config.data_dir / "admin.json", path)
    await done(plane, "ca", "rotate")
    assert "of now" in await done(plane, "context", "refresh", context=diligent)
    assert "up to date" in await done(plane, "context", "refresh", context=diligent)
    assert diligent.stat().st_mode & 0o777 == 0o600
    await done(plane, "ca", "retire", context=diligent)
    await done(plane, "device", "list", context=diligent)
    refused = await flotilla(plane, "device", "list", context=late)
    assert refused.exit_code == ExitCode.UNREACHABLE
    assert "the context's CA did not sign" in refused.output
    assert "admin.json" in refused.output


async def test_a_context_file_that_cannot_be_written_holds_up_no_step(
    plane: Plane, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given, mine = plane.config.data_dir / "admin.json", tmp_path / "mine.json"
    given.rename(mine)
    given.mkdir()
    await done(plane, "ca", "rotate", context=mine)
    await done(plane, "ca", "retire", context=mine)
    assert caplog.text.count("context_not_refreshed") == 2


async def test_only_admins_may(plane: Plane, tmp_path: Path) -> None:
    context = tmp_path / "operator.json"
    held = json.loads((plane.config.data_dir / "admin.json").read_text())
    context.write_text(json.dumps({**held, "token": await plane.api_token("operator")}))
    for step in ("rotate", "retire"):
        assert "needs admin" in (await flotilla(plane, "ca", step, context=context)).output
    assert "authority" in await done(plane, "ca", "show", context=context)


async def test_a_stream_of_an_old_certificate_is_cut_off_when_that_ends(
    plane: Plane, tmp_path: Path
) -> None:
    victim = await plane.enroll("box-1")
    life = await victim.connect()
    still_open = victim.stub
    await still_open.FetchMetadata(METADATA)
    await done(plane, "ca", "rotate")
    request = device_pb2.RenewCertificateRequest(csr_pem=victim.csr())
    answer = await victim.stub.RenewCertificate(request)
    await opens(plane, plane.ca_pem, victim.key_pem, answer.certificate_pem)
    await done(plane, "ca", "retire")
    with pytest.raises(grpc.aio.AioRpcError, match=r"authority of certificate .* was retired"):
        await drain(life)
    # A connection from before is refused too.
    with pytest.raises(grpc.aio.AioRpcError, match=r"authority of certificate .* was retired"):
        await still_open.FetchMetadata(METADATA)


async def drain(life: Stream) -> None:
    while True:
        await life.read()


@pytest.mark.parametrize("endorsed_by", ["nobody", "a device of the fleet"])
async def test_an_attackers_authority_is_refused_and_nothing_changes(
    plane: Plane, tmp_path: Path, endorsed_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The attacker has the server's key but not the authority's."""
    async with running_box(await enrolled(plane, tmp_path / "box-1")) as box:
        await eventually(lambda: box.link.connected)
        before, files = box.renewal.identity, box.trusted
        thief = Authority("thief")
        endorsement = b"" if endorsed_by == "nobody" else before.certificate_pem
        offer = Authorities(thief.pem, plane.ca_pem, endorsement)
        await box.renewal.offer(offer)
        assert "authorities_refused" in caplog.text

        async def renew(csr_pem: bytes) -> tuple[bytes, Authorities]:
            return thief.device(csr_pem), offer

        box.renewal._connection.renew = renew  # type: ignore[method-assign]
        with pytest.raises(UntrustedError):
            await box.renewal.renew()
        assert box.renewal.identity is before
        assert box.trusted == files
        assert load_identity(box.data_dir).certificate_pem == before.certificate_pem
        assert box.link.connected


def test_a_box_killed_while_it_follows_has_parts_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Authority("old"), Authority("new")
    for writes in range(4):
        data_dir = DataDir(tmp_path / str(writes))
        data_dir.root.mkdir()
        request = signing_request(make_or_load_key(data_dir), "box-1")
        save_certificate(data_dir, old.device(request), old.pem)
        write_file(data_dir.ca, old.pem)
        left = iter(range(writes))

        def write(path: Path, data: bytes, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            write_file(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(identities, "write_file", write)
            with contextlib.suppress(KeyboardInterrupt):
                save_certificate(data_dir, new.device(request), new.pem)
        found = load_identity(data_dir)
        assert (
            issuer_of(x509.load_pem_x509_certificate(found.certificate_pem), new.pem) is not None
        ) is (writes > 1)
    assert data_dir.ca.read_bytes() == new.pem
