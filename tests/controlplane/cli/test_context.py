"""A context file holds a token, so it is for its owner alone."""

from pathlib import Path

import msgspec
import pytest

from controlplane.cli.client import Context, load_context


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o600, 0o400])
def test_a_context_file_that_others_can_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: int
) -> None:
    path = tmp_path / "context.json"
    path.write_bytes(msgspec.json.encode(Context("127.0.0.1:1", "t", "pem")))
    path.chmod(mode)
    assert load_context(path).token == "t"
    said = capsys.readouterr().err
    assert (f"chmod 600 {path}" in said) == bool(mode & 0o077)
