"""Every error that artifact raises; each says what was wrong and what to do next."""


class ArtifactError(Exception):
    """Something about an artifact is not as it must be.

    ``advice`` is the next step for whoever can mend it, in one sentence.
    """

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class InvalidManifestError(ArtifactError):
    """A manifest does not follow its schema or contradicts itself."""


class ChunkMismatchError(ArtifactError):
    """Bytes do not have the digest or the length that they were announced with."""


class UntrustedError(ArtifactError):
    """Metadata or a target failed verification."""


class ExpiredMetadataError(UntrustedError):
    """Metadata is authentic but too old to start anything new on."""


class ClockSetBackError(UntrustedError):
    """This machine's clock is behind a time that the server has signed."""


class DisagreementError(UntrustedError):
    """The director and the publisher do not say the same about a release."""


class InvalidSketchError(ArtifactError):
    """A quantile sketch is out of bounds, or two have different accuracies."""


class KeyFileError(ArtifactError):
    """A key file is missing, unreadable, or its passphrase is wrong."""


class InvalidJoinTokenError(ArtifactError):
    """A text is not a join token, or not a whole one."""


class InvalidDeltaError(ArtifactError):
    """A delta breaks its format or a bound, or does not give the file that it names."""
