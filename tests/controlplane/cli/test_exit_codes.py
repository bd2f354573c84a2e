"""Exit codes: one table in code, the same in the documents, and one code per gRPC status."""

import re
from pathlib import Path

import grpc
import pytest

from controlplane.cli.client import Context, refusal
from controlplane.cli.exit_codes import BY_STATUS, MEANINGS, ExitCode, exit_code_of_error
from controlplane.errors import ControlPlaneError, DeviceBusyError, InvalidSelectorError
from runtimes.errors import BuildError, UnsafeFileError

DOCUMENT = Path(__file__).parents[3] / "docs" / "command-line.md"


def test_the_document_has_the_table_of_the_code() -> None:
    section = DOCUMENT.read_text().partition("\n## Exit codes\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (\S+) \| (.*) \|$", section, re.MULTILINE)
    expected = [
        (str(int(code)), code.name.lower().replace("_", "-"), MEANINGS[code]) for code in ExitCode
    ]
    assert rows == expected


def test_every_named_status_exists() -> None:
    assert set(BY_STATUS) <= {status.name for status in grpc.StatusCode}


class Failed(grpc.RpcError):
    def __init__(self, status: grpc.StatusCode) -> None:
        self._status = status

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return "because"

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("flotilla-advice", "Do this."),)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.FAILED_PRECONDITION, 3),
        (grpc.StatusCode.ALREADY_EXISTS, 3),
        (grpc.StatusCode.NOT_FOUND, 4),
        (grpc.StatusCode.UNAUTHENTICATED, 5),
        (grpc.StatusCode.PERMISSION_DENIED, 5),
        (grpc.StatusCode.UNAVAILABLE, 6),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 6),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 7),
        (grpc.StatusCode.INTERNAL, 1),
    ],
)
def test_a_failed_call_ends_with_the_code_of_its_status(status: grpc.StatusCode, code: int) -> None:
    error = refusal(Failed(status), Context(server="a:1", token="t", ca_pem="c"))
    assert (error.exit_code, error.message, error.advice) == (code, "because", "Do this.")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidSelectorError("x"), ExitCode.USAGE),
        (DeviceBusyError("x"), ExitCode.REFUSED),
        (ControlPlaneError("x"), ExitCode.FAILED),
        (UnsafeFileError("x"), ExitCode.REFUSED),
        (BuildError("x"), ExitCode.FAILED),
    ],
)
def test_an_error_of_the_command_itself_has_a_code_too(error: Exception, code: ExitCode) -> None:
    assert exit_code_of_error(error) is code
