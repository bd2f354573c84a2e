"""Every error that a runtime raises; each says what was wrong and what to do next."""


class RuntimeFault(Exception):  # noqa: N818 - RuntimeError is taken, and these are its kin
    """Something a runtime could not or would not do.

    ``advice`` is the next step in one sentence; ``retryable`` tells whether the same call may
    succeed later.
    """

    retryable = False

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class UnsafeFileError(RuntimeFault):
    """A file is not what its name says, is malformed, or asks for more than is allowed."""


class InspectionDiedError(UnsafeFileError):
    """Reading a file hung, took too much memory, or crashed: its process is gone."""


class UnsupportedModelError(RuntimeFault):
    """The file is sound, but this runtime cannot run it or not in this way."""


class QuantizeError(RuntimeFault):
    """A scheme does not apply to this model."""


class BuildError(RuntimeFault):
    """A model version cannot be built as asked."""


class VariantFailedError(BuildError):
    """A variant was made, and cannot be run as its source can."""


class NotANumberError(BuildError):
    """A model predicts what no figure of quality can be made of: NaN, or the impossible."""


class LoadError(RuntimeFault):
    """The engine could not load the model."""


class InvalidInputError(RuntimeFault):
    """A request the model cannot answer: too long, wrong shape, wrong type, unknown name."""


class ContextExceededError(InvalidInputError):
    """A prompt or text that the model's context does not hold."""
