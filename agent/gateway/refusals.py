"""The table from errors to HTTP answers, and the error bodies of both protocols."""

from dataclasses import dataclass
from http import HTTPStatus

from agent.errors import (
    AgentError,
    ModelRefusedError,
    NothingServedError,
    PromptTooLongError,
    SlotBusyError,
    UnknownRouteError,
    WorkerCrashedError,
    WorkerFailedError,
    WorkerUnavailableError,
)

BUSY_RETRY_SECONDS = 1
DOWN_RETRY_SECONDS = 5


class RequestRefusedError(AgentError):
    """The gateway refuses a request. ``param`` is the JSON path of the field at fault."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, advice: str = ""
    ) -> None:
        super().__init__(message, advice=advice)
        self.status = status
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP error answer; ``retry_seconds`` 0 sends no Retry-After."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_seconds: int = 0

    def openai(self) -> object:
        """Return the body in OpenAI's shape."""
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            kind = "rate_limit_error"
        elif self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            kind = "server_error"
        else:
            kind = "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def open_inference(self) -> object:
        """Return the body in the Open Inference Protocol's shape."""
        return {"error": self.message}


# Error, status, code, value of Retry-After in seconds. The first row that matches wins.
_TABLE: tuple[tuple[type[AgentError], int, str, int], ...] = (
    # OpenAI's code: clients that shorten the prompt and retry look for it.
    (PromptTooLongError, HTTPStatus.BAD_REQUEST, "context_length_exceeded", 0),
    (ModelRefusedError, HTTPStatus.BAD_REQUEST, "invalid_value", 0),
    (SlotBusyError, HTTPStatus.TOO_MANY_REQUESTS, "too_many_requests", BUSY_RETRY_SECONDS),
    (UnknownRouteError, HTTPStatus.NOT_FOUND, "model_not_found", 0),
    (
        NothingServedError,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "nothing_served",
        DOWN_RETRY_SECONDS,
    ),
    (
        WorkerUnavailableError,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "worker_unavailable",
        DOWN_RETRY_SECONDS,
    ),
    (WorkerFailedError, HTTPStatus.INTERNAL_SERVER_ERROR, "model_failed", 0),
    (WorkerCrashedError, HTTPStatus.INTERNAL_SERVER_ERROR, "worker_crashed", 0),
    (AgentError, HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", 0),
)


def refusal_of(error: AgentError) -> Refusal:
    """Return the HTTP answer for an error, advice included."""
    message = f"{error}. {error.advice}" if error.advice else str(error)
    if isinstance(error, RequestRefusedError):
        busy = error.status == HTTPStatus.TOO_MANY_REQUESTS
        retry = BUSY_RETRY_SECONDS if busy else 0
        return Refusal(error.status, error.code, message, error.param, retry)
    status, code, retry = next(row[1:] for row in _TABLE if isinstance(error, row[0]))
    if isinstance(error, ModelRefusedError) and error.unsupported:
        code = "unsupported_task"
    param = "model" if isinstance(error, UnknownRouteError) else None
    return Refusal(status, code, message, param, retry)
