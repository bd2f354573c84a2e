"""The release: components, routes, probation and policy in one document."""

from typing import Annotated

from msgspec import Meta

from artifact.manifest.fields import Bytes, Label, QualifiedName, Record, Text, Version
from artifact.manifest.models import Adapter, File, ModelVersion
from artifact.manifest.probation import Probation
from artifact.manifest.routes import Route
from artifact.manifest.selection import SelectionPolicy


class Component(Record, frozen=True):
    """Model and limits of one slot."""

    slot: Label
    model: ModelVersion
    adapters: Annotated[tuple[Adapter, ...], Meta(max_length=32)] = ()
    # 0: limited by the device's budget alone.
    max_memory_bytes: Bytes = 0
    # Concurrent requests; 0: as many as the engine serves well.
    max_concurrency: Annotated[int, Meta(ge=0, le=256)] = 0
    # Idle seconds after which the model is unloaded until the next call; 0: never.
    idle_unload_seconds: Annotated[float, Meta(ge=0, le=86400)] = 0
    # Off: a request reuses the cached prompt of another only if both have the same cache_salt.
    share_prefixes: bool = True

    @property
    def adapter_bytes(self) -> int:
        """Bytes that its adapters add to the model's memory: their stored weights."""
        return sum(adapter.file.size for adapter in self.adapters)


class Release(Record, frozen=True):
    """An immutable, publisher-signed set that installs atomically.

    ``counter`` rises with every release of the same name; a device never goes below the publisher's
    signed ``min_release``.
    """

    schema: Annotated[int, Meta(ge=1, le=1)]
    name: QualifiedName
    version: Version
    counter: Annotated[int, Meta(ge=1, le=1 << 53)]
    components: Annotated[tuple[Component, ...], Meta(min_length=1, max_length=32)]
    routes: Annotated[tuple[Route, ...], Meta(max_length=128)] = ()
    probation: Probation = Probation()
    selection: SelectionPolicy = SelectionPolicy()
    description: Text = ""

    @property
    def reference(self) -> str:
        """Reference publisher/name@version."""
        return f"{self.name}@{self.version}"

    @property
    def publisher(self) -> str:
        """The part of the name that a delegation grants."""
        return self.name.partition("/")[0]

    def files(self) -> dict[str, File]:
        """Return every file of every variant and adapter, by digest."""
        variants = [
            file
            for component in self.components
            for variant in component.model.variants
            for file in variant.files
        ]
        adapters = [adapter.file for part in self.components for adapter in part.adapters]
        return {file.sha256: file for file in variants + adapters}
