"""Conversion of an assignment to its wire message."""

from collections.abc import Sequence

from flotilla.v1 import device_pb2 as wire

from artifact.trust.statements import DirectorMetadata
from controlplane.fleet.class_measurements import ClassMeasurement
from controlplane.store.assignments import Assignment


def assignment_to_wire(
    wanted: Assignment, signed: DirectorMetadata | None, known: Sequence[ClassMeasurement]
) -> wire.Assignment:
    """Encode an assignment with the hardware class's measurements of the release's variants."""
    director = None
    if signed is not None:
        director = wire.DirectorMetadata(
            timestamp=signed.timestamp,
            snapshot=signed.snapshot,
            targets=signed.targets,
            roots=signed.roots,
        )
    return wire.Assignment(
        generation=wanted.generation,
        release=wanted.release,
        manifest_sha256=wanted.manifest_sha256,
        director=director,
        class_measurements=[
            wire.ClassMeasurement(
                model=one.model,
                variant=one.variant,
                tokens_per_second=one.tokens_per_second,
                joules_per_token=one.joules_per_token,
                memory_bytes=one.memory_bytes,
                devices=one.devices,
            )
            for one in known
        ],
    )
