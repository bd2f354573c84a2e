"""`flotilla publish`: what arrives is what was built, signed by its publisher, and sent once."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import image_world
import msgspec
import pytest
from built_models import build_model, write_release
from model_service import FakeModelService
from operator_cli import Operator, document, refusal

from artifact.chunks import (
    MAX_CHUNK_BYTES,
    assemble_file,
    decode_index_of,
    encode_index,
    index_file,
)
from artifact.errors import UntrustedError
from artifact.manifest import decode_release
from artifact.trust.image import add_release
from artifact.trust.keys import load_key
from artifact.trust.repository import accept_release
from artifact.trust.statements import check_manifest
from artifact.trust.verify import ImageVerifier
from runtimes.fake import FakeModel, write_model

RELEASE = "acme/assistant@1"


@pytest.fixture
def release_file(tmp_path: Path) -> Path:
    build_model(tmp_path / "tiny", padding=3 * MAX_CHUNK_BYTES)
    return write_release(tmp_path)


def test_a_published_release_is_what_a_device_verifies_and_assembles(
    founded: FakeModelService, operator: Operator, release_file: Path, tmp_path: Path
) -> None:
    answer = document(operator.publish(release_file, as_json=True))

    manifest = founded.manifests[RELEASE]
    assert answer["reference"] == RELEASE
    assert answer["counter"] == 1
    assert answer["published"] is True
    assert answer["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert answer["upload"]["bytes_sent"] == sum(map(len, founded.chunks.values()))
    verifier = ImageVerifier(
        tmp_path / "device",
        founded.metadata["1.root.json"],
        founded.metadata.get,
        clock=lambda: datetime.now(UTC),
    )
    release = check_manifest(verifier.resolve(RELEASE), manifest)
    for variant in release.components[0].model.variants:
        (file,) = variant.files
        index = decode_index_of(file, founded.chunks[bytes.fromhex(file.index)])
        target = tmp_path / f"assembled-{variant.name}"
        assemble_file(index, (founded.chunks[chunk.sha256] for chunk in index.chunks), target)
        built = release_file.parent / "tiny" / variant.name / file.name
        assert target.read_bytes() == built.read_bytes()


@pytest.fixture
def adapter_file(release_file: Path, operator: Operator) -> Path:
    """What makes an adapter of; the folder polite/ is the adapter."""
    source = write_model(release_file.parent / "polite.fake", FakeModel(reply="Please. "))
    base, out = release_file.parent / "tiny", release_file.parent / "polite"
    arguments = ("--base", str(base), "--name", "acme/polite", "--version", "1", "--out", str(out))
    document(operator.run("model", "adapter", str(source), *arguments, as_json=True))
    return out / "adapter.fake"


def test_an_adapter_is_signed_and_sent_with_its_base(
    founded: FakeModelService, operator: Operator, release_file: Path, adapter_file: Path
) -> None:
    document(operator.publish(release_file, as_json=True))
    components = [{"slot": "chat", "model": "tiny", "adapters": ["polite"], "max_concurrency": 2}]
    routes = [{"name": "courteous", "slot": "chat", "adapter": "polite"}]
    second = write_release(release_file.parent, version="2", components=components, routes=routes)
    founded.calls.clear()
    answer = document(operator.publish(second, as_json=True))

    (component,) = decode_release(founded.manifests["acme/assistant@2"]).components
    (adapter,) = component.adapters
    assert (adapter.name, adapter.model, adapter.version) == ("polite", "acme/polite", "1")
    assert set(adapter.bases) == {v.files[0].sha256 for v in component.model.variants}
    assert component.max_concurrency == 2
    # The base was there.
    size = adapter_file.stat().st_size
    assert size < answer["upload"]["bytes_sent"] < size + 1000


@pytest.mark.parametrize("harm", ["gone", "changed", "other base"])
def test_an_adapter_that_is_not_what_was_built_is_not_signed(
    founded: FakeModelService,
    operator: Operator,
    release_file: Path,
    adapter_file: Path,
    harm: str,
) -> None:
    base = "tiny"
    if harm == "gone":
        adapter_file.unlink()
    elif harm == "changed":
        write_model(adapter_file, FakeModel(reply="Please! "))
    else:
        base = str(build_model(release_file.parent / "another", version="9"))
    components = [{"slot": "chat", "model": base, "adapters": ["polite"]}]
    path = write_release(release_file.parent, components=components)
    message = refusal(operator.publish(path))
    reasons = {"gone": "is missing", "changed": "was changed", "other base": "bound to other files"}
    assert reasons[harm] in message
    assert RELEASE not in founded.manifests


def test_publishing_the_same_again_is_a_no_op_that_says_so(
    founded: FakeModelService, operator: Operator, release_file: Path
) -> None:
    operator.publish(release_file)
    founded.calls.clear()
    operator.env = {}  # and no key is needed
    again = operator.publish(release_file)
    assert again.exit_code == 0
    assert f"{RELEASE} is published already; nothing to do." in again.stdout
    assert document(operator.publish(release_file, as_json=True))["published"] is False
    assert founded.calls == []


def test_publishing_again_sends_what_the_server_has_lost(
    founded: FakeModelService, operator: Operator, release_file: Path
) -> None:
    operator.publish(release_file)
    lost = next(iter(founded.chunks))
    del founded.chunks[lost]
    again = document(operator.publish(release_file, as_json=True))
    assert (again["published"], again["upload"]["chunks_sent"]) == (False, 1)
    assert lost in founded.chunks


def test_the_same_version_with_other_content_is_refused(
    founded: FakeModelService, operator: Operator, release_file: Path
) -> None:
    operator.publish(release_file)
    founded.calls.clear()
    changed = write_release(release_file.parent, description="other")
    assert "published already, with other content" in refusal(operator.publish(changed))
    assert founded.calls == []


def test_only_missing_chunks_travel(
    founded: FakeModelService, operator: Operator, release_file: Path
) -> None:
    first = document(operator.publish(release_file, as_json=True))["upload"]
    assert first["chunks_sent"] == first["chunks_total"] > 4

    second_file = write_release(release_file.parent, version="2", description="same model")
    second = document(operator.publish(second_file, as_json=True))

    assert second["counter"] == 2
    assert second["upload"]["chunks_sent"] == 0
    assert second["upload"]["bytes_total"] == first["bytes_total"]
    # A chunk that the server lost is sent again, and nothing else.
    lost = next(iter(founded.chunks))
    del founded.chunks[lost]
    third_file = write_release(release_file.parent, version="3")
    third = document(operator.publish(third_file, as_json=True))
    assert third["upload"]["chunks_sent"] == 1
    assert lost in founded.chunks


def test_a_subset_of_variants_and_a_memory_limit_reach_the_manifest(
    founded: FakeModelService, operator: Operator, release_file: Path
) -> None:
    component = {"slot": "chat", "model": "tiny", "variants": ["half"], "max_memory": "64MiB"}
    document(
        operator.publish(write_release(release_file.parent, components=[component]), as_json=True)
    )
    (sent,) = decode_release(founded.manifests[RELEASE]).components
    assert [variant.name for variant in sent.model.variants] == ["half"]
    assert sent.max_memory_bytes == 64 << 20


def test_min_release_names_a_version_and_shuts_out_older_ones(
    founded: FakeModelService, operator: Operator, release_file: Path, tmp_path: Path
) -> None:
    operator.publish(release_file)
    directory = release_file.parent
    unknown = write_release(directory, version="2", min_release="7")
    assert "min_release names acme/assistant@7" in refusal(operator.publish(unknown))
    document(operator.publish(write_release(directory, version="2", min_release="2"), as_json=True))
    verifier = ImageVerifier(
        tmp_path / "device",
        founded.metadata["1.root.json"],
        founded.metadata.get,
        clock=lambda: datetime.now(UTC),
    )
    assert verifier.resolve("acme/assistant@2").min_release == 2
    with pytest.raises(UntrustedError, match="below the publisher's min_release"):
        verifier.resolve(RELEASE)


def test_hardware_classes_reach_the_device(
    founded: FakeModelService, operator: Operator, release_file: Path, tmp_path: Path
) -> None:
    classes = ["0123456789ab", "ba9876543210"]
    release_file = write_release(release_file.parent, hardware_classes=classes[::-1])
    document(operator.publish(release_file, as_json=True))
    verifier = ImageVerifier(
        tmp_path / "device",
        founded.metadata["1.root.json"],
        founded.metadata.get,
        clock=lambda: datetime.now(UTC),
    )
    assert list(verifier.resolve(RELEASE).hardware_classes) == classes
    bad = write_release(release_file.parent, version="2", hardware_classes=["nonsense"])
    assert "hardware_classes" in refusal(operator.publish(bad))


# Bad input: one clear error, exit code 1, and nothing was sent.


def missing_file(model: Path) -> None:
    (model / "half" / "model.fake").unlink()


def altered_file(model: Path) -> None:
    path = model / "half" / "model.fake"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def truncated_file(model: Path) -> None:
    path = model / "half" / "model.fake"
    path.write_bytes(path.read_bytes()[:-1])


def missing_model(model: Path) -> None:
    (model / "model.json").unlink()


def broken_model(model: Path) -> None:
    (model / "model.json").write_bytes(b'{"name": "acme/tiny"}')


def edit_model(model: Path, **changes: Any) -> None:
    path = model / "model.json"
    document = msgspec.json.decode(path.read_bytes())
    document["variants"][0] |= changes
    path.write_bytes(msgspec.json.encode(document))


def unknown_runtime(model: Path) -> None:
    edit_model(model, runtime="abacus")


def other_chunking(model: Path) -> None:
    file = msgspec.json.decode((model / "model.json").read_bytes())["variants"][0]["files"][0]
    edit_model(model, files=[file | {"index": "00" * 32}])


def not_what_its_name_says(model: Path) -> None:
    path = model / "full" / "model.fake"
    path.write_bytes(b"GGUF and then something")
    index = index_file(path)
    edit_model(
        model,
        files=[
            {
                "name": path.name,
                "size": index.size,
                "sha256": index.sha256.hex(),
                "index": hashlib.sha256(encode_index(index)).hexdigest(),
            }
        ],
    )


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (missing_file, "model.fake is missing"),
        (altered_file, "was changed after it was built"),
        (truncated_file, "was changed after it was built"),
        (missing_model, "cannot read"),
        (broken_model, "missing required field"),
        (unknown_runtime, "needs the runtime 'abacus', which nobody has"),
        (other_chunking, "cut into chunks otherwise"),
        (not_what_its_name_says, "is not a fake model"),
    ],
)
def test_a_model_that_is_not_as_built_is_refused_before_anything_is_sent(
    founded: FakeModelService, operator: Operator, release_file: Path, spoil: Any, reason: str
) -> None:
    spoil(release_file.parent / "tiny")
    message = refusal(operator.publish(release_file))
    assert reason in message
    assert len(message.strip().splitlines()) >= 2, "no advice"
    assert founded.calls == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"components": [{"slot": "chat", "model": "none"}]}, "cannot read"),
        (
            {"components": [{"slot": "chat", "model": "tiny", "variants": ["q9"]}]},
            "no variant 'q9'",
        ),
        ({"routes": [{"name": "a", "slot": "eyes"}]}, "names the unknown slot 'eyes'"),
        ({"name": "nobody/assistant"}, "'nobody' is not a publisher of this repository"),
    ],
)
def test_a_release_that_contradicts_itself_is_refused(
    founded: FakeModelService,
    operator: Operator,
    release_file: Path,
    fields: dict[str, Any],
    reason: str,
) -> None:
    path = write_release(release_file.parent, **fields)
    assert reason in refusal(operator.publish(path))
    assert founded.calls == []


def test_a_wrong_passphrase_is_refused_before_anything_is_sent(
    founded: FakeModelService, operator: Operator, release_file: Path
) -> None:
    operator.env = {"FLOTILLA_KEY_PASSPHRASE": "wrong horse"}
    assert "cannot be unlocked" in refusal(operator.publish(release_file))
    assert founded.calls == []


def test_without_keys_the_operator_is_told_to_make_them(
    service: FakeModelService, operator: Operator, release_file: Path
) -> None:
    assert "keys init" in refusal(operator.publish(release_file))


def test_nothing_is_signed_on_top_of_metadata_that_the_root_does_not_vouch_for(
    founded: FakeModelService, operator: Operator, release_file: Path, tmp_path: Path
) -> None:
    stranger = Operator(operator.context, tmp_path / "stranger")
    founded.roles.clear()
    document(stranger.init(as_json=True))
    assert "cannot be verified" in refusal(operator.publish(release_file))
    assert founded.calls == []


def test_an_older_listing_is_refused_by_the_publishers_own_memory(
    founded: FakeModelService, operator: Operator, release_file: Path
) -> None:
    before = dict(founded.metadata)
    operator.publish(release_file)
    operator.publish(release_file)  # this time it sees what it published
    founded.metadata.update(before)
    second = write_release(release_file.parent, version="2")
    assert "cannot be verified" in refusal(operator.publish(second))


def test_of_two_publishers_at_once_the_second_is_told_to_try_again(
    founded: FakeModelService, operator: Operator, release_file: Path, tmp_path: Path
) -> None:
    def slip_in() -> None:
        """Between the upload and the publication, a colleague publishes."""
        founded.before_publishing = lambda: None
        data = image_world.manifest("acme/other")
        signer = load_key(operator.folder / "publisher-acme.pem", "correct horse")
        now = datetime.now(UTC)
        targets = add_release(founded.roles["acme"], data, signer, now=now)
        accepted = accept_release(founded.roles, targets, data, founded.online, now=now)
        founded.keep(accepted.changed)

    founded.before_publishing = slip_in
    assert "run `flotilla publish` again" in refusal(operator.publish(release_file))
    document(operator.publish(release_file, as_json=True))
    assert RELEASE in founded.manifests
