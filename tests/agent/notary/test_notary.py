"""The real notary process on the files of an enrolled box."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.config import DataDir
from agent.errors import IdentityError, NotaryLostError
from agent.identity.keys import load_identity, load_key, make_or_load_key, signing_request
from agent.notary import Notary, expect, notary
from agent.notary import questions as q
from agent.storage.atomic_file import write_file
from artifact.trust.statements import Authorities
from tests.agent.tls import Authority


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def data_dir(tmp_path: Path, authority: Authority) -> DataDir:
    """The data directory of an enrolled box."""
    data_dir = DataDir(tmp_path)
    request = signing_request(make_or_load_key(data_dir), "box-1")
    write_file(data_dir.certificate, authority.device(request))
    write_file(data_dir.ca, authority.pem)
    return data_dir


@asynccontextmanager
async def notary_of(data_dir: DataDir, idle_seconds: float = 60) -> AsyncIterator[Notary]:
    notary = Notary(data_dir, idle_seconds=idle_seconds)
    try:
        yield notary
    finally:
        await notary.close()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_it_says_who_the_box_is_and_signs_for_it(data_dir: DataDir) -> None:
    async with notary_of(data_dir) as notary:
        known = expect(q.Identified, await notary.ask(q.WhoAmI())).credentials
        assert known == load_identity(data_dir).credentials
        signature = expect(q.Signed, await notary.ask(q.Sign(data=b"receipt"))).data
    public_key = load_key(data_dir).public_key()
    public_key.verify(signature, b"receipt", ec.ECDSA(hashes.SHA256()))


async def test_its_refusals_are_the_errors_that_they_stand_for(
    data_dir: DataDir, authority: Authority
) -> None:
    stranger = Authority("other")
    certificate = stranger.device(signing_request(load_key(data_dir), "box-1"))
    before = data_dir.certificate.read_bytes()
    async with notary_of(data_dir) as notary:
        question = q.Adopt(certificate_pem=certificate, ca_pem=authority.pem, offered=None)
        with pytest.raises(IdentityError, match="not signed by the authority") as refused:
            expect(q.Identified, await notary.ask(question))
        assert refused.value.advice
        offered = Authorities(stranger.pem)
        follow = q.Follow(certificate_pem=before, ca_pem=authority.pem, offered=offered)
        assert isinstance(await notary.ask(follow), q.Refused)
        data_dir.key.unlink()
        with pytest.raises(IdentityError, match="key cannot be read"):
            expect(q.Signed, await notary.ask(q.Sign(data=b"")))
    assert data_dir.certificate.read_bytes() == before
    assert data_dir.ca.read_bytes() == authority.pem


async def test_one_process_answers_until_it_rests(data_dir: DataDir) -> None:
    async with notary_of(data_dir, idle_seconds=0.2) as notary:
        assert notary.pid == 0
        await asyncio.gather(*(notary.ask(q.Sign(data=b"x")) for _ in range(5)))
        pid = notary.pid
        assert is_running(pid)
        async with asyncio.timeout(10):
            while is_running(pid):  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.01)
        assert notary.pid == 0
        assert isinstance(await notary.ask(q.WhoAmI()), q.Identified)


async def test_a_process_that_died_is_replaced_unseen(data_dir: DataDir) -> None:
    async with notary_of(data_dir) as notary:
        await notary.ask(q.WhoAmI())
        os.kill(notary.pid, signal.SIGKILL)
        assert isinstance(await notary.ask(q.WhoAmI()), q.Identified)


async def test_one_that_never_answers_is_an_error_and_leaves_nothing(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notary, "ANSWER_SECONDS", 0.001)
    async with notary_of(data_dir) as lost:
        with pytest.raises(NotaryLostError):
            await lost.ask(q.WhoAmI())
        assert lost.pid == 0


async def test_whoever_gives_up_waiting_leaves_no_half_answer_behind(data_dir: DataDir) -> None:
    async with notary_of(data_dir) as notary:
        await notary.ask(q.WhoAmI())
        pid = notary.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await notary.ask(q.Sign(data=b"x"))
        assert notary.pid == 0
        assert not is_running(pid)
        assert isinstance(await notary.ask(q.WhoAmI()), q.Identified)


async def test_closing_ends_it(data_dir: DataDir) -> None:
    async with notary_of(data_dir) as notary:
        await notary.ask(q.WhoAmI())
        pid = notary.pid
    assert not is_running(pid)
