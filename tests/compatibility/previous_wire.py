r"""The wire of the previous release (0.1.0), from a recorded descriptor set.

`previous_wire.binpb` was made from the previous release's protos, and is made again at a release:

    python -m grpc_tools.protoc -I protos --include_imports \
        --descriptor_set_out=tests/compatibility/previous_wire.binpb protos/flotilla/v1/*.proto
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "flotilla.v1"
RECORDED = FileDescriptorSet.FromString(
    (Path(__file__).parent / "previous_wire.binpb").read_bytes()
)
# A pool of its own: the default pool has this release's messages of the same names.
POOL = DescriptorPool()
for _file in RECORDED.file:
    POOL.Add(_file)  # type: ignore[no-untyped-call]
FILES: dict[str, FileDescriptor] = {
    file.name: POOL.FindFileByName(file.name) for file in RECORDED.file if file.package == PACKAGE
}


def message(name: str, /, **fields: Any) -> Any:
    """Make a message of the previous wire."""
    return kind(name)(**fields)


def kind(name: str) -> Any:
    """Return the class of a message of the previous wire."""
    return GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def module(file: str) -> SimpleNamespace:
    """Return the previous messages and enum values of a file, like a generated module."""
    descriptor = FILES[f"flotilla/v1/{file}.proto"]
    values = {
        value.name: value.number
        for enum in descriptor.enum_types_by_name.values()
        for value in enum.values
    }
    kinds = {name: kind(name) for name in descriptor.message_types_by_name}
    return SimpleNamespace(**kinds, **values)
