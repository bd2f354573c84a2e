"""Lineage of a model version: bounded, without contradiction, absent by default."""

from typing import Any

import msgspec
import pytest

from artifact.errors import InvalidManifestError
from artifact.manifest import (
    Component,
    Divergence,
    File,
    Lineage,
    ModelVersion,
    Relation,
    Release,
    Task,
    Variant,
    check_lineage,
    decode_release,
    encode_release,
)

FILE = File(name="m.gguf", size=7, sha256="ab" * 32, index="cd" * 32)


def model(lineage: Lineage | None = None, *others: Lineage, **variant: Any) -> ModelVersion:
    return ModelVersion(
        name="acme/tiny",
        version="2",
        task=Task.TEXT_GENERATION,
        variants=(
            Variant(
                name="q4",
                runtime="llama_cpp",
                format="gguf",
                quantization="q4_k_m",
                files=(FILE,),
                memory_bytes=9,
                **variant,
            ),
        ),
        lineage=lineage,
        also_from=others,
    )


def from_(reference: str, relation: str = "merge") -> Lineage:
    name, _, version = reference.partition("@")
    return Lineage(relation=Relation(relation), name=name, version=version)


def test_what_was_measured_survives_signing_and_is_left_out_when_it_was_not() -> None:
    divergence = Divergence(mean_kl=0.01, same_top=0.98, predictions=1000, dataset="heldout")
    measured = model(divergence=divergence, measured_memory_bytes=8, recipe="importance matrix")
    for one, present in ((measured, True), (model(), False)):
        release = Release(
            schema=1,
            name="acme/assistant",
            version="1",
            counter=1,
            components=(Component(slot="chat", model=one),),
        )
        data = encode_release(release)
        assert decode_release(data) == release
        for field in (b"divergence", b"measured_memory_bytes", b"recipe"):
            assert (field in data) is present
        assert b"also_from" not in data


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean_kl": -0.1},
        {"same_top": 1.1},
        {"predictions": 0},
        {"dataset": "x" * 201},
    ],
)
def test_a_divergence_is_bounded(wrong: dict[str, Any]) -> None:
    sound = {"mean_kl": 0.0, "same_top": 1.0, "predictions": 1, "dataset": ""}
    msgspec.convert(sound, Divergence)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(sound | wrong, Divergence)


def test_a_model_comes_from_one_base_or_is_a_merge_of_several() -> None:
    for relation in Relation:
        check_lineage(model(from_("acme/base@1", relation)))
    check_lineage(model(from_("acme/a@1"), from_("acme/b@1")))


@pytest.mark.parametrize(
    "bases",
    [
        [from_("acme/tiny@2", "distilled")],
        [from_("acme/a@1"), from_("acme/a@1")],
        [from_("acme/a@1", "finetune"), from_("acme/b@1", "finetune")],
        [from_("acme/a@1"), from_("acme/b@1", "distilled")],
        [None, from_("acme/b@1")],
    ],
)
def test_a_lineage_that_contradicts_itself_is_refused_and_what_is_signed_already_read(
    bases: list[Lineage | None],
) -> None:
    first, *others = bases
    wrong = model(first, *(other for other in others if other))
    with pytest.raises(InvalidManifestError) as caught:
        check_lineage(wrong)
    assert caught.value.advice
    release = Release(
        schema=1,
        name="acme/assistant",
        version="1",
        counter=1,
        components=(Component(slot="chat", model=wrong),),
    )
    assert decode_release(encode_release(release)) == release
