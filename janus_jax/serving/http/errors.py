"""What goes wrong with a request, as the object that clients of OpenAI's form know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from janus_jax.errors import UserError, one_line
from janus_jax.serving.jobs import Failed, QueueFull

# Status -> the `type` of the error object.
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
# `Failed.kind` -> (status, code). 499 is what nginx logs of a client that went away: nobody reads it.
_FAILED = {
    "invalid": (400, "invalid_value"),
    "cancelled": (499, "cancelled"),
    "deadline": (504, "deadline_exceeded"),
    "error": (500, "internal_error"),
}


class ApiError(Exception):
    """An answer that is an error.

    Args:
      message: one line for the client: what is wrong, where, what to do.
      status: of HTTP.
      param: the field that is wrong, such as `messages[0].content`.
      code: a word that programs can compare.
      headers: further ones of the answer.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        about = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": about}


def of_exception(error: Exception) -> ApiError:
    """What the client is told; of a bug only that there is one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        after = {"Retry-After": str(max(1, math.ceil(error.after)))}
        return ApiError(one_line(error), 429, code="queue_full", headers=after)
    if isinstance(error, UserError):
        return ApiError(one_line(error), 400, code="invalid_value")
    return ApiError("the server has a fault; its log says more", 500, code="internal_error")


def of_failed(failed: Failed) -> ApiError:
    """The same of a job that the engine has given up."""
    status, code = _FAILED.get(failed.kind, _FAILED["error"])
    return ApiError(failed.message, status, code=code)
