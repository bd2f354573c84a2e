"""Servicer of ModelService."""

from collections.abc import AsyncIterator

from flotilla.v1 import model_pb2 as wire
from flotilla.v1 import model_pb2_grpc

from artifact.manifest import Component, Variant, decode_release, target_path
from artifact.trust.restore import LostMetadata
from artifact.trust.update import Update
from controlplane.api.interceptor import Context, current_caller
from controlplane.api.translate import timestamp
from controlplane.services.publishing.comparison import ComparisonService
from controlplane.services.publishing.metadata import ImageRepositoryService
from controlplane.services.publishing.releases import ReleaseService
from controlplane.services.publishing.restore import RestoreService
from controlplane.services.publishing.uploads import UploadService
from controlplane.store.paging import page_request
from controlplane.store.releases import StoredRelease


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Publishing, and published releases."""

    def __init__(
        self,
        *,
        repository: ImageRepositoryService,
        uploads: UploadService,
        releases: ReleaseService,
        comparison: ComparisonService,
        restore: RestoreService,
    ) -> None:
        self._repository = repository
        self._uploads = uploads
        self._releases = releases
        self._comparison = comparison
        self._restore = restore

    async def GetTrust(
        self, request: wire.GetTrustRequest, context: Context
    ) -> wire.GetTrustResponse:
        state = await self._repository.state()
        return wire.GetTrustResponse(
            snapshot_key=state.snapshot_key,
            timestamp_key=state.timestamp_key,
            root_version=state.root_version,
            next_snapshot_key=state.next_snapshot_key,
            next_timestamp_key=state.next_timestamp_key,
        )

    async def InitializeTrust(
        self, request: wire.InitializeTrustRequest, context: Context
    ) -> wire.InitializeTrustResponse:
        await self._repository.initialise(
            current_caller(),
            request.request_id,
            root=request.root,
            targets=request.targets,
            delegated=dict(request.delegated),
        )
        return wire.InitializeTrustResponse()

    async def UpdateTrust(
        self, request: wire.UpdateTrustRequest, context: Context
    ) -> wire.UpdateTrustResponse:
        update = Update(request.root or None, request.targets or None, dict(request.delegated))
        version = await self._repository.update(current_caller(), request.request_id, update)
        return wire.UpdateTrustResponse(root_version=version)

    async def RestoreTrust(
        self, request: wire.RestoreTrustRequest, context: Context
    ) -> wire.RestoreTrustResponse:
        lost = LostMetadata(tuple(request.roots), request.targets or None, dict(request.delegated))
        report = await self._restore.restore(current_caller(), request.request_id, lost)
        return wire.RestoreTrustResponse(
            roles=report.roles, releases=report.releases, incomplete=report.incomplete
        )

    async def GetMetadata(
        self, request: wire.GetMetadataRequest, context: Context
    ) -> wire.GetMetadataResponse:
        return wire.GetMetadataResponse(data=await self._repository.file(request.name))

    async def MissingChunks(
        self, request: wire.MissingChunksRequest, context: Context
    ) -> wire.MissingChunksResponse:
        return wire.MissingChunksResponse(digests=await self._uploads.missing(request.digests))

    async def UploadChunks(
        self, request_iterator: AsyncIterator[wire.UploadChunksRequest], context: Context
    ) -> wire.UploadChunksResponse:
        answer = wire.UploadChunksResponse()
        async for request in request_iterator:
            if await self._uploads.put(request.data):
                answer.chunks_stored += 1
                answer.bytes_stored += len(request.data)
        return answer

    async def PublishRelease(
        self, request: wire.PublishReleaseRequest, context: Context
    ) -> wire.PublishReleaseResponse:
        release = await self._releases.publish(
            current_caller(),
            request.request_id,
            manifest=request.manifest,
            targets=request.targets,
        )
        return wire.PublishReleaseResponse(release=_release(release, listed=True))

    async def ListReleases(
        self, request: wire.ListReleasesRequest, context: Context
    ) -> wire.ListReleasesResponse:
        page = await self._releases.page(page_request(request.page_size, request.page_token))
        paths = await self._repository.installable()
        releases = [
            _release(release, listed=target_path(release.reference) in paths)
            for release in page.items
        ]
        return wire.ListReleasesResponse(releases=releases, next_page_token=page.next_token)

    async def GetRelease(
        self, request: wire.GetReleaseRequest, context: Context
    ) -> wire.GetReleaseResponse:
        release = await self._releases.get(request.reference)
        listed = target_path(release.reference) in await self._repository.installable()
        return wire.GetReleaseResponse(
            release=_release(release, listed=listed), manifest=release.manifest
        )

    async def CompareReleases(
        self, request: wire.CompareReleasesRequest, context: Context
    ) -> wire.CompareReleasesResponse:
        found = await self._comparison.compare(request.held, request.wanted, request.variant)
        return wire.CompareReleasesResponse(
            variants=[
                wire.VariantDifference(
                    slot=one.slot,
                    variant=one.variant,
                    size_bytes=one.size_bytes,
                    chunk_bytes=one.chunk_bytes,
                    delta_bytes=one.delta_bytes,
                    being_made=one.being_made,
                )
                for one in found
            ],
            being_made=any(one.being_made for one in found),
        )


def _release(stored: StoredRelease, *, listed: bool) -> wire.Release:
    release = decode_release(stored.manifest)
    return wire.Release(
        reference=stored.reference,
        counter=stored.counter,
        manifest_sha256=stored.manifest_sha256,
        published_at=timestamp(stored.published_at),
        description=release.description,
        components=[_component(component) for component in release.components],
        listed=listed,
    )


def _component(component: Component) -> wire.ReleaseComponent:
    return wire.ReleaseComponent(
        slot=component.slot,
        model_version=component.model.reference,
        task=component.model.task,
        variants=[_variant(variant) for variant in component.model.variants],
    )


def _variant(variant: Variant) -> wire.ReleaseVariant:
    quality = variant.quality
    return wire.ReleaseVariant(
        name=variant.name,
        runtime=variant.runtime,
        quantization=variant.quantization,
        size_bytes=variant.size_bytes,
        memory_bytes=variant.memory_bytes,
        quality=f"{quality.metric} {quality.value:.4g}" if quality else "",
    )
