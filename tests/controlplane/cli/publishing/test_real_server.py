"""The same commands against the real control plane: its store, its chunks, its rules."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

from built_models import build_model, write_release
from flotilla.v1 import model_pb2, model_pb2_grpc
from operator_cli import Operator, document, refusal

from artifact.manifest import decode_release
from artifact.trust.statements import check_manifest
from artifact.trust.verify import ImageVerifier
from controlplane.cli.app import GlobalOptions
from controlplane.cli.client import connect
from controlplane.cli.exit_codes import ExitCode
from controlplane.config import Address, Config
from controlplane.server.running import running


def publish_and_verify(operator: Operator, tmp_path: Path) -> None:
    assert document(operator.init(as_json=True))["founded"] is True
    assert document(operator.init(as_json=True))["founded"] is False

    build_model(tmp_path / "tiny", padding=3 << 20)
    release_file = write_release(tmp_path)
    first = document(operator.publish(release_file, as_json=True))
    assert first["upload"]["chunks_sent"] == first["upload"]["chunks_total"] > 4
    assert document(operator.publish(release_file, as_json=True))["published"] is False
    changed = write_release(tmp_path, description="other")
    assert "with other content" in refusal(operator.publish(changed))
    second = document(operator.publish(write_release(tmp_path, version="2"), as_json=True))
    assert (second["counter"], second["upload"]["chunks_sent"]) == (2, 0)

    verified_by_a_device(operator.context, tmp_path)


def verified_by_a_device(context: Path, tmp_path: Path) -> None:
    with connect(GlobalOptions(context)) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)

        def fetch(name: str) -> bytes | None:
            if name == "2.root.json":
                return None
            return bytes(stub.GetMetadata(model_pb2.GetMetadataRequest(name=name)).data)

        root = fetch("1.root.json")
        assert root is not None
        verifier = ImageVerifier(tmp_path / "device", root, fetch, clock=lambda: datetime.now(UTC))
        for version in ("1", "2"):
            reference = f"acme/assistant@{version}"
            manifest = stub.GetRelease(model_pb2.GetReleaseRequest(reference=reference)).manifest
            release = check_manifest(verifier.resolve(reference), manifest)
            assert release == decode_release(manifest)


async def test_a_release_goes_from_the_publishers_disk_to_what_a_device_believes(
    tmp_path: Path,
) -> None:
    any_port = Address("127.0.0.1", 0)
    config = Config(data_dir=tmp_path / "server", public=any_port, device=any_port, http=any_port)
    async with running(config):
        context = config.data_dir / "admin.json"
        assert json.loads(context.read_text())["token"]
        operator = Operator(context, tmp_path / "keys")
        await asyncio.to_thread(publish_and_verify, operator, tmp_path)


def compare_releases(operator: Operator, models: Path, tmp_path: Path) -> None:
    document(operator.init(as_json=True))
    variants = ["gguf-q8", "gguf-q4"]
    for version, name in (("1", "base"), ("2", "finetune")):
        parts = [{"slot": "chat", "model": str(models / name), "variants": variants}]
        release = write_release(tmp_path, version=version, components=parts)
        document(operator.publish(release, as_json=True))

    first, second = "acme/assistant@1", "acme/assistant@2"
    found = document(operator.run("release", "diff", first, second, as_json=True))
    assert found["being_made"] is False
    assert [one["variant"] for one in found["variants"]] == variants
    for one in found["variants"]:
        # One of two layers was trained on; its tensors differ, if by little.
        assert int(one["chunk_bytes"]) < 0.6 * int(one["size_bytes"])
        assert int(one["delta_bytes"]) < 0.9 * int(one["chunk_bytes"])
    text = operator.run("release", "diff", first, second, "--variant", "gguf-q4").stdout
    assert text.split()[:3] == ["SLOT", "VARIANT", "SIZE"]
    assert "gguf-q8" not in text
    assert " %)" in text
    assert "nothing" in operator.run("release", "diff", second, second).stdout
    refused = operator.run("release", "diff", first, "acme/assistant@3")
    assert refused.exit_code == ExitCode.NOT_FOUND
    assert "no release 'acme/assistant@3'" in refused.stderr


async def test_what_a_change_of_release_costs_is_shown(built_models: Path, tmp_path: Path) -> None:
    any_port = Address("127.0.0.1", 0)
    config = Config(data_dir=tmp_path / "server", public=any_port, device=any_port, http=any_port)
    async with running(config):
        operator = Operator(config.data_dir / "admin.json", tmp_path / "keys")
        await asyncio.to_thread(compare_releases, operator, built_models, tmp_path)
