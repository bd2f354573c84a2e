"""The exceptions of the agent, each with a message and advice."""


class AgentError(Exception):
    """Base of the agent's exceptions; ``advice`` is the next step, in one sentence."""

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
    """The worker died during this request and is being restarted."""


class WorkerUnavailableError(AgentError):
    """The worker is stopped, or did not come back in time."""


class ModelRefusedError(AgentError):
    """The model cannot answer this request: too long, wrong shape, wrong type, not its task.

    ``unsupported``: no other input would help, because the task is wrong.
    """

    def __init__(self, message: str, *, unsupported: bool = False, advice: str = "") -> None:
        super().__init__(message, advice=advice)
        self.unsupported = unsupported


class PromptTooLongError(ModelRefusedError):
    """The prompt or text is longer than the model's context."""


class WorkerFailedError(AgentError):
    """The model or the release is at fault; no other request would avoid it. The worker continues.

    Also raised for unexpected exceptions of the engine.
    """


class ProtocolError(AgentError):
    """A frame between daemon and worker is too long or cannot be decoded."""


class NothingServedError(AgentError):
    """No release is live yet, or the swap to one took too long."""


class UnknownRouteError(AgentError):
    """No route or slot of the live release has this name."""


class SlotBusyError(AgentError):
    """A slot has reached its number of concurrent requests."""


class GatewayAddressError(AgentError):
    """The gateway's address is unusable, taken, or would be reachable from other machines."""


class MeterLostError(AgentError):
    """A power meter that was found at the start no longer answers."""


class BenchmarkError(AgentError):
    """The micro-benchmark did not finish."""


class NotEnrolledError(AgentError):
    """The data directory is not of an enrolled agent."""


class DataDirectoryError(AgentError):
    """The data directory cannot be created, read or written."""


class InvalidConfigError(AgentError):
    """A setting has the wrong form."""


class AlreadyRunningError(AgentError):
    """Another agent process uses this data directory."""


class EnrollmentError(AgentError):
    """The box could not be enrolled; no new files are left on it."""


class ServerUnreachableError(EnrollmentError):
    """The control plane did not answer as expected; the same call may succeed later.

    A new key is kept, since the server may already know it.
    """


class IdentityError(AgentError):
    """The key or the certificate is missing or unreadable, or they do not match."""


class NotaryLostError(AgentError):
    """The notary process did not answer, at two attempts."""


class DownloadError(AgentError):
    """A file could not be fetched; ``reason`` is machine-readable, for the receipt."""

    reason = "download_failed"


class SourceUnavailableError(DownloadError):
    """The server is unreachable or the call was interrupted; it may succeed later."""

    reason = "server_unreachable"


class ChunkMissingError(DownloadError):
    """The server lacks a chunk that the signed release names."""

    reason = "chunk_missing"


class CorruptDownloadError(DownloadError):
    """Bytes arrived altered or incomplete, repeatedly."""

    reason = "download_corrupt"


class SlowDownloadError(SourceUnavailableError):
    """Bytes arrive below the minimum rate, or the deadline has passed."""

    reason = "download_too_slow"


class DeltaRefusedError(DownloadError):
    """A delta did not produce the expected file, which is then fetched by chunks."""

    reason = "delta_refused"


class DiskFullError(DownloadError):
    """The files do not fit on the disk; partial files are deleted."""

    reason = "disk_full"


class DiskFailedError(DownloadError):
    """A write to the disk failed; data that it may have lost is not used."""

    reason = "disk_failed"


class JournalError(AgentError):
    """The journal cannot be opened, read or written."""
