"""Every error that a runtime raises, each with a message and advice on what to do next."""


class RuntimeFault(Exception):  # noqa: N818 - RuntimeError is taken, and these are its kin
    """A runtime failed or refused to do something.

    ``advice`` is the next step in one sentence; ``retryable`` is true if the same call may succeed
    later.
    """

    retryable = False

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class UnsafeFileError(RuntimeFault):
    """A file is malformed, is not of the kind its name claims, or exceeds a limit."""


class InspectionDiedError(UnsafeFileError):
    """The inspecting process hung, exceeded its memory, or crashed, and has ended."""


class UnsupportedModelError(RuntimeFault):
    """The file is valid, but this runtime cannot run it, or not in this way."""


class QuantizeError(RuntimeFault):
    """A scheme does not apply to this model."""


class BuildError(RuntimeFault):
    """A model version cannot be built as requested."""


class VariantFailedError(BuildError):
    """A variant was made, but does not run as its source does."""


class EvaluationKilledError(BuildError):
    """An evaluating process was killed, most likely because memory ran out."""


class NotANumberError(BuildError):
    """A model predicts NaN or infinity, from which no quality can be computed."""


class LoadError(RuntimeFault):
    """The engine could not load the model."""


class ModelFaultError(RuntimeFault):
    """The model's own files prevent an answer; no other request would avoid it."""


class InvalidInputError(RuntimeFault):
    """The model cannot answer the request: too long, wrong shape, wrong type, unknown name."""


class ConversationRefusedError(InvalidInputError):
    """A chat template refuses a conversation on purpose, for instance its order of roles."""


class ContextExceededError(InvalidInputError):
    """A prompt or text is longer than the model's context."""
