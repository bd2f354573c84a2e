"""Exceptions of artifact; each message names the fault, ``advice`` the next step."""


class ArtifactError(Exception):
    """An artifact is invalid.

    ``advice`` is the next step for the person who can repair it, in one sentence.
    """

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class InvalidManifestError(ArtifactError):
    """A manifest does not follow its schema or contradicts itself."""


class ChunkMismatchError(ArtifactError):
    """Bytes do not have the announced digest or length."""


class UntrustedError(ArtifactError):
    """Metadata or a target failed verification."""


class ExpiredMetadataError(UntrustedError):
    """Metadata is authentic but has expired; it permits no new installation."""


class ClockSetBackError(UntrustedError):
    """This machine's clock is behind a time that the server has signed."""


class DisagreementError(UntrustedError):
    """The director's and the publisher's signed data about a release differ."""


class InvalidSketchError(ArtifactError):
    """A quantile sketch is out of bounds, or two have different accuracies."""


class KeyFileError(ArtifactError):
    """A key file is missing, unreadable, or its passphrase is wrong."""


class InvalidJoinTokenError(ArtifactError):
    """A text is not a complete join token."""


class InvalidDeltaError(ArtifactError):
    """A delta breaks its format or a limit, or does not produce the file that it names."""
