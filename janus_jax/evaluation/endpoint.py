"""A language model behind an HTTP server of OpenAI's form: one question, one text, or why there is none.

vLLM, SGLang, llama.cpp, Ollama, LM Studio and hosted services have `/v1/chat/completions`. The answer of a server
is untrusted: it is read within limits of time and size, redirects are not followed (the key would go along), and
nothing of it is shown but short, printable pieces. The key comes from the environment and is never shown.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax import untrusted
from janus_jax.errors import UserError

KEY_VARIABLE = "JANUS_JUDGE_KEY"
RESPONSE_BYTES = 2**22
_WARMER = 0.25  # temperature that each further try has more
_LONGEST_WAIT = 60.0  # seconds, also of what a server asks for
_PASSES = {408, 409, 425, 429}  # beside 500 and more: another try may help
_LOCAL = {"localhost", "127.0.0.1", "::1"}


class JudgeError(Exception):
    """A question to which there is no answer; one line. `passes`: whether another try may help."""

    def __init__(self, reason: str, passes: bool = True, wait: float = 0.0):
        super().__init__(reason)
        self.passes, self.wait = passes, wait


class NothingSaid(JudgeError):
    """The server answered, without a word."""

    def __init__(self, reason: str):
        super().__init__(reason, passes=False)


class Endpoint:
    """A model behind a server.

    Args:
      base_url: up to and including /v1, such as http://localhost:8000/v1.
      model: its name there.
      key_variable: the environment variable with the key; it need not be set, as local servers need none.
      timeout: seconds that one try may take in all.
      tries: how often a question is sent when the server fails, with longer and longer pauses between.
      body: further fields of each request; None takes one out, such as {"temperature": None,
        "max_tokens": None, "max_completion_tokens": 2048} for models that think.
      sleep: waits some seconds.

    Raises:
      UserError: an address, a name or a key that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key_variable: str = KEY_VARIABLE,
        timeout: float = 60.0,
        tries: int = 4,
        body: Mapping[str, Any] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if not isinstance(model, str) or not model:
            raise UserError("a judge over HTTP needs the name of its model")
        if not math.isfinite(timeout) or timeout <= 0 or tries < 1:
            raise UserError(
                f"a judge needs a timeout above 0 and 1 try or more, not {timeout}, {tries}"
            )
        self.name = untrusted.printable(model)
        self._model, self._timeout, self._tries = model, timeout, tries
        self._body, self._sleep = dict(body or {}), sleep
        key = os.environ.get(key_variable, "").strip()
        self._url, self._host = _address(base_url, bool(key), key_variable)
        if key and not (key.isascii() and key.isprintable()):
            raise UserError(f"the key in {key_variable} has characters that no key has")
        self._key, self._key_variable = key, key_variable
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(self, prompt: str, number: int = 0) -> str:
        """What the model says to a prompt at its try `number`; each is warmer. Raises JudgeError."""
        messages = [{"role": "user", "content": prompt}]
        return message_text(self.choice(messages, temperature=min(number * _WARMER, 1.0)))

    def check(self) -> None:
        """Asks something small, before anything depends on it: again after an error, and where nothing is said.

        Raises:
          UserError: there is no answer; the reason is in the message.
        """
        for number in range(self._tries):
            try:
                self("Say yes.", number)
                return
            except JudgeError as error:
                if not isinstance(error, NothingSaid) or number == self._tries - 1:
                    raise UserError(f"the judge {self.name} at {self._host}: {error}") from error

    def choice(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
        """The first of the server's `choices`; asked again where the server fails.

        Args:
          messages: of the chat.
          fields: of the request, such as temperature.

        Raises:
          JudgeError: there is none after all tries.
        """
        for number in range(self._tries):
            try:
                return self._once(messages, fields)
            except JudgeError as error:
                if not error.passes or number == self._tries - 1:
                    raise
                pause = 2**number * (0.5 + random.random() / 2)
                self._sleep(min(max(pause, error.wait), _LONGEST_WAIT))
        raise AssertionError("unreachable: the last try returns or raises")

    def _once(
        self, messages: Sequence[Mapping[str, Any]], fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        request = {"model": self._model, "messages": list(messages), **fields, **self._body}
        sent = {name: value for name, value in request.items() if value is not None}
        content = self._post(json.dumps(sent).encode())
        try:
            answer = json.loads(content)
            choice = answer["choices"][0]
            message_text(choice)
        except JudgeError:
            raise
        except (*untrusted.SENSELESS, RecursionError) as error:
            raise JudgeError("the server answers something else than a chat completion") from error
        return choice

    def _post(self, content: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, content, headers, method="POST")
        end = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return _read(response, RESPONSE_BYTES, end)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, end) from error
        except TimeoutError as error:
            raise JudgeError(f"no answer within {self._timeout:g} s") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise JudgeError(f"no answer within {self._timeout:g} s") from error
            raise JudgeError(f"no connection: {self._shown(error.reason)}") from error
        except (OSError, http.client.HTTPException) as error:
            raise JudgeError(f"the connection broke: {self._shown(error)}") from error

    def _refusal(self, error: urllib.error.HTTPError, end: float) -> JudgeError:
        """What a status other than success means."""
        code = error.code
        if 300 <= code < 400:
            return JudgeError(
                f"HTTP {code}: it leads elsewhere, which is not followed; give that address",
                passes=False,
            )
        if code in (401, 403):  # servers repeat parts of keys in what they say to these
            return JudgeError(f"HTTP {code}: it wants a key in {self._key_variable}", passes=False)
        said = ""
        try:
            body = json.loads(_read(error, 2**16, end))
            said = body["error"]["message"] if isinstance(body["error"], dict) else body["error"]
        except (*untrusted.SENSELESS, RecursionError, OSError, http.client.HTTPException):
            pass
        except JudgeError:
            pass
        said = f": {self._shown(said)}" if isinstance(said, str) and said else ""
        return JudgeError(
            f"HTTP {code}{said}", passes=code >= 500 or code in _PASSES, wait=_retry_after(error)
        )

    def _shown(self, text: object) -> str:
        text = " ".join(str(text).split())
        return untrusted.printable(text.replace(self._key, "***") if self._key else text, 160)


def message_text(choice: Mapping[str, Any]) -> str:
    """The text of a choice.

    Raises:
      JudgeError: it has none, such as that of a filter, or of a model that thought until it was cut off.
    """
    text = choice["message"].get("content")
    if not isinstance(text, str) or not text.strip():
        reason = untrusted.shown(choice.get("finish_reason"))
        raise NothingSaid(f"the judge said nothing (finish_reason {reason})")
    return text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


def _read(response: Any, limit: int, end: float) -> bytes:
    """The body, of at most `limit` bytes, whole before the moment `end`, however slowly it drips."""
    parts, size = [], 0
    while part := response.read1(2**16):
        size += len(part)
        if size > limit:
            raise JudgeError(f"the server answers more than {limit >> 10} KiB", passes=False)
        parts.append(part)
        if time.monotonic() > end:
            raise TimeoutError
    return b"".join(parts)


def _retry_after(error: urllib.error.HTTPError) -> float:
    """The seconds that a server asks to wait."""
    try:
        seconds = float(error.headers.get("Retry-After") or 0)
    except ValueError:  # a date
        return 0.0
    return seconds if 0 <= seconds <= _LONGEST_WAIT else _LONGEST_WAIT


def _address(base_url: str, has_key: bool, key_variable: str) -> tuple[str, str]:
    """(address of chat completions, host and port, to be shown)."""
    shown = untrusted.shown(base_url)
    try:
        parts = urllib.parse.urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except (ValueError, AttributeError) as error:
        raise UserError(f"the judge's address {shown} is none") from error
    if parts.username or parts.password:
        raise UserError(
            f"the judge's address must have no password in it; put it in {key_variable}"
        )
    plain = base_url.isascii() and base_url.isprintable() and " " not in base_url
    if parts.scheme not in ("http", "https") or not host or not plain:
        raise UserError(
            f"the judge's address must be such as http://localhost:8000/v1, not {shown}"
        )
    if parts.query or parts.fragment:
        raise UserError(f"the judge's address {shown} must end with its path, such as /v1")
    if has_key and parts.scheme == "http" and host not in _LOCAL:
        raise UserError(
            f"the key in {key_variable} would go to {untrusted.printable(host)} for everyone to read: use "
            "https, or a tunnel to localhost, or unset it"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    host = untrusted.printable(host if port is None else f"{host}:{port}")
    return f"{parts.scheme}://{parts.netloc}{path}/chat/completions", host
