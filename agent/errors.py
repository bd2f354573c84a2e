"""Every error that the agent raises; each says what was wrong and what to do next."""


class AgentError(Exception):
    """Something the agent could not or would not do.

    ``advice`` is the next step for whoever can mend it, in one sentence.
    """

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class LoadFailedError(AgentError):
    """A worker could not load its model.

    ``reason`` is machine-readable: out_of_memory, crashed, timed_out, refused, no_runtime,
    not_started, damaged, unsafe_file, internal_error.
    """

    def __init__(self, message: str, *, reason: str, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.reason = reason


class WorkerCrashedError(AgentError):
    """The worker died while it answered this request; it is being restarted."""


class WorkerUnavailableError(AgentError):
    """The worker is stopped, or did not come back in time."""


class ModelRefusedError(AgentError):
    """The model cannot answer this request: too long, wrong shape, wrong type, not its task.

    ``unsupported`` tells a request that no input could mend (the wrong task) from bad input.
    """

    def __init__(self, message: str, *, unsupported: bool = False, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.unsupported = unsupported


class PromptTooLongError(ModelRefusedError):
    """The prompt or text is longer than the model's context."""


class WorkerFailedError(AgentError):
    """The engine raised something unexpected while it answered; the worker lives on."""


class ProtocolError(AgentError):
    """A frame between daemon and worker is too long or cannot be read."""


class NothingServedError(AgentError):
    """No release is live yet, or the swap to one took too long."""


class UnknownRouteError(AgentError):
    """No route or slot of the live release has this name."""


class SlotBusyError(AgentError):
    """A slot answers as many requests as it may."""


class GatewayAddressError(AgentError):
    """The gateway's address is unusable, taken, or would be reachable from other machines."""


class MeterLostError(AgentError):
    """A power meter that was found at the start does not answer any more."""


class BenchmarkError(AgentError):
    """The micro-benchmark did not finish."""


class NotEnrolledError(AgentError):
    """The data directory holds no enrolled agent."""


class InvalidConfigError(AgentError):
    """A setting does not have the form that it must have."""


class AlreadyRunningError(AgentError):
    """Another agent process holds this data directory."""


class EnrollmentError(AgentError):
    """The box could not be enrolled, and nothing new is left on it."""


class ServerUnreachableError(EnrollmentError):
    """No control plane answered as it should; the same call may succeed later.

    A key that the server may know by now is kept.
    """


class IdentityError(AgentError):
    """The key or the certificate is missing, unreadable, or they do not fit each other."""


class NotaryLostError(AgentError):
    """The process that holds the key and checks signatures did not answer, twice."""


class DownloadError(AgentError):
    """A file could not be fetched. ``reason`` is machine-readable, for the receipt."""

    reason = "download_failed"


class SourceUnavailableError(DownloadError):
    """The server cannot be reached, or broke off; the same call may succeed later."""

    reason = "server_unreachable"


class ChunkMissingError(DownloadError):
    """The server does not have a chunk that the signed release names."""

    reason = "chunk_missing"


class CorruptDownloadError(DownloadError):
    """Bytes kept arriving altered or cut off."""

    reason = "download_corrupt"


class SlowDownloadError(SourceUnavailableError):
    """Bytes arrive more slowly than the least that is allowed, or did not within the deadline."""

    reason = "download_too_slow"


class DeltaRefusedError(DownloadError):
    """A delta did not give the wanted file; the file is fetched by its chunks instead."""

    reason = "delta_refused"


class DiskFullError(DownloadError):
    """The files do not fit on the disk; nothing half-made is left."""

    reason = "disk_full"


class DiskFailedError(DownloadError):
    """The disk did not take what was written; nothing that it may have lost is used."""

    reason = "disk_failed"


class JournalError(AgentError):
    """The journal cannot be opened, read or written."""
