"""Answers of the notary: the work that needs python-tuf and cryptography.

Pure except for files in the data directory: the identity, and python-tuf's cache.
"""

from collections.abc import Mapping

import msgspec

from agent.config import DataDir
from agent.errors import AgentError, IdentityError
from agent.identity.keys import (
    Identity,
    check_certificate,
    load_identity,
    load_key,
    save_certificate,
    sign,
    signing_request,
)
from agent.notary import questions as q
from agent.storage.atomic_file import write_file
from artifact.errors import ArtifactError
from artifact.trust.authority import follow
from artifact.trust.director import DirectorVerifier
from artifact.trust.verify import ImageVerifier


class _MissingError(Exception):
    """The question does not include metadata of this name."""


class _Floors:
    """Implements artifact.trust.floors.Floors on the floors of a question."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = dict(numbers)
        self.raised: dict[str, int] = {}

    def floors(self) -> Mapping[str, int]:
        return self._numbers

    def raise_floors(self, numbers: Mapping[str, int]) -> None:
        for name, number in numbers.items():
            if number > self._numbers.get(name, -1):
                self._numbers[name] = self.raised[name] = number


def answer(data_dir: DataDir, question: q.Question) -> q.Answer:
    """Answer a question; an error becomes the answer Refused."""
    # The journal belongs to the daemon: floors come with the question and go back with the answer.
    floors = _Floors(question.floors if isinstance(question, q.Direct | q.Resolve) else {})
    try:
        result = _result(data_dir, question, floors)
    except _MissingError as error:
        result = q.Missing(name=str(error))
    except OSError as error:
        result = _refused(IdentityError(f"the data directory cannot be read or written: {error}"))
    except (ArtifactError, AgentError) as error:
        result = _refused(error)
    return msgspec.structs.replace(result, floors=floors.raised)


def _result(data_dir: DataDir, question: q.Question, floors: _Floors) -> q.Answer:
    match question:
        case q.WhoAmI():
            result: q.Answer = q.Identified(credentials=load_identity(data_dir).credentials)
        case q.Sign():
            result = q.Signed(data=sign(load_key(data_dir), question.data))
        case q.Request():
            result = q.Signed(data=signing_request(load_key(data_dir), question.name))
        case q.Adopt():
            result = _adopt(data_dir, question)
        case q.Follow():
            result = _follow(data_dir, question)
        case q.Direct():
            result = _direct(data_dir, question, floors)
        case q.Resolve():
            result = _resolve(data_dir, question, floors)
        case _:
            raise AssertionError(question)  # frames.py decodes only these kinds
    return result


def _refused(error: ArtifactError | AgentError) -> q.Refused:
    return q.Refused(kind=type(error).__name__, message=str(error), advice=error.advice)


def _adopt(data_dir: DataDir, question: q.Adopt) -> q.Answer:
    key, ca_pem = load_key(data_dir), question.ca_pem
    if question.offered is not None:
        ca_pem = follow(ca_pem, question.offered)
    check_certificate(question.certificate_pem, key, ca_pem)
    save_certificate(data_dir, question.certificate_pem, ca_pem)
    return q.Identified(credentials=Identity(key, question.certificate_pem, ca_pem).credentials)


def _follow(data_dir: DataDir, question: q.Follow) -> q.Answer:
    ca_pem = follow(question.ca_pem, question.offered)
    credentials = Identity(load_key(data_dir), question.certificate_pem, ca_pem).credentials
    # A certificate of the old authority needs it on the disk until it is renewed.
    if credentials.is_of_newest_authority and ca_pem != question.ca_pem:
        write_file(data_dir.ca, ca_pem)
    return q.Identified(credentials=credentials)


def _direct(data_dir: DataDir, question: q.Direct, floors: _Floors) -> q.Answer:
    verifier = DirectorVerifier(
        data_dir.director_root.read_bytes(),
        question.device_id,
        clock=lambda: question.now,
        floors=floors,
    )
    return q.Directed(directive=verifier.directive(question.metadata))


def _resolve(data_dir: DataDir, question: q.Resolve, floors: _Floors) -> q.Answer:
    def fetch(name: str) -> bytes | None:
        if name not in question.metadata:
            raise _MissingError(name)
        return question.metadata[name]

    verifier = ImageVerifier(
        data_dir.metadata,
        data_dir.image_root.read_bytes(),
        fetch,
        clock=lambda: question.now,
        floors=floors,
    )
    return q.Resolved(release=verifier.resolve(question.reference))
