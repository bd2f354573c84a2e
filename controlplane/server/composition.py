"""Composition: every service of the control plane, made once."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from controlplane.api.streams import Streams
from controlplane.blobs import ChunkStore, DeltaCache
from controlplane.config import Config
from controlplane.metrics import Metrics
from controlplane.server.readiness import Readiness
from controlplane.services.access import AccessService
from controlplane.services.devices.class_measurements import ClassMeasurementService
from controlplane.services.devices.enrollment import EnrollService
from controlplane.services.devices.identification import IdentificationService
from controlplane.services.devices.inventory import InventoryService
from controlplane.services.devices.join_tokens import JoinTokenService
from controlplane.services.devices.states import DeviceStateService
from controlplane.services.director import DirectorService
from controlplane.services.ingest import IngestService
from controlplane.services.keys.authority_change import AuthorityService
from controlplane.services.keys.server_keys import ServerKeys
from controlplane.services.publishing.comparison import ComparisonService
from controlplane.services.publishing.deltas import DeltaService
from controlplane.services.publishing.expiry import ExpiryService
from controlplane.services.publishing.metadata import ImageRepositoryService
from controlplane.services.publishing.releases import ReleaseService
from controlplane.services.publishing.restore import RestoreService
from controlplane.services.publishing.uploads import UploadService
from controlplane.services.rollouts.driver import RolloutDriver
from controlplane.services.rollouts.steering import RolloutService
from controlplane.services.signals import Signals
from controlplane.services.telemetry import TelemetryService
from controlplane.store.database import Database


class Services:
    """Every service, over one database and one set of keys."""

    def __init__(
        self, config: Config, database: Database, keys: ServerKeys, clock: Callable[[], datetime]
    ) -> None:
        self.config = config
        self.database = database
        self.keys = keys
        self.clock = clock
        self.metrics = Metrics()
        self.expiry = ExpiryService(database, keys, self.metrics, clock)
        self.readiness = Readiness(database, config.data_dir, self.expiry.warnings)
        self.streams = Streams(self.metrics)
        self.signals = Signals()
        self.chunks = ChunkStore(config.data_dir / "chunks")
        self.access = AccessService(database, clock)
        self.driver = RolloutDriver(database, self.signals, clock)
        self.rollouts = RolloutService(database, self.signals, self.driver, clock)
        self.repository = ImageRepositoryService(database, keys.online, clock)
        self.uploads = UploadService(self.chunks)
        self.releases = ReleaseService(database, self.chunks, self.uploads, keys.online, clock)
        self.restore = RestoreService(database, self.chunks, self.uploads, keys.online, clock)
        self.director = DirectorService(database, keys.director, self.signals, clock)
        self.class_measurements = ClassMeasurementService(database, time.monotonic)
        cache = DeltaCache(config.data_dir / "deltas", config.delta_cache_bytes)
        self.deltas = DeltaService(self.chunks, cache)
        self.comparison = ComparisonService(self.releases, self.chunks, self.deltas)
        self.inventory = InventoryService(database, clock)
        self.join_tokens = JoinTokenService(database, keys, clock)
        self.telemetry = TelemetryService(database)
        self.ingest = IngestService(database, self.signals, self.driver, self.metrics, clock)
        self.states = DeviceStateService(database, self.signals, clock)
        self.authorities = AuthorityService(
            database, keys, self.signals, clock, context=config.data_dir / "admin.json"
        )
        self.identification = IdentificationService(database, keys.authorities, self.states, clock)
        self.enroll = EnrollService(
            database,
            keys,
            clock,
            certificate_lifetime=timedelta(days=config.device_certificate_days),
        )
