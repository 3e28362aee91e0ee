"""The contract between what speaks HTTP and what owns the device: jobs go in, events come back.

Both sides know this module and not each other, so the protocol can be tested without a model, and the engine
without a network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class DrawJob:
    """Pictures of one prompt. Picture i is a function of (prompt, seed, i) and the settings alone.

    Attributes:
      prompt: text.
      n: pictures, at least 1.
      seed: 0 to 2**32 - 1.
      cfg_weight, temperature, top_k, top_p: None takes the checkpoint's own.
      previews: unfinished pictures that are wanted of each, spread over the drawing; 0 for none.
    """

    prompt: str
    n: int = 1
    seed: int = 0
    cfg_weight: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    previews: int = 0


@dataclasses.dataclass(frozen=True)
class Message:
    """A turn of a conversation; the pictures, uint8 [H, W, 3], stand before the text, or at its placeholders."""

    role: str  # "system", "user" or "assistant"
    text: str
    pictures: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class ChatJob:
    """The answer to a conversation that ends with a message of the user.

    Attributes:
      messages: in order; a system message only as the first.
      max_tokens: of the answer, at least 1.
      temperature: 0 is greedy.
      top_p: nucleus; None does not restrict.
      seed: 0 to 2**32 - 1; of no effect on a greedy answer.
      stop: texts that end the answer, which does not have them.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()


Job = DrawJob | ChatJob


@dataclasses.dataclass(frozen=True)
class Preview:
    """An unfinished picture, uint8 [h, w, 3]: `done` of `total` codes, the rest of it white."""

    index: int
    picture: np.ndarray
    done: int
    total: int


@dataclasses.dataclass(frozen=True)
class Picture:
    """A finished picture, uint8 [h, w, 3]."""

    index: int
    picture: np.ndarray


@dataclasses.dataclass(frozen=True)
class Delta:
    """More text of an answer; only whole characters."""

    text: str


@dataclasses.dataclass(frozen=True)
class Finished:
    """The last event of a job that went well.

    Attributes:
      reason: "stop", or "length" where an answer was cut.
      prompt_tokens, completion_tokens: positions of the prompt, pictures too; tokens or codes that were made.
    """

    reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Failed:
    """The last event of one that did not.

    Attributes:
      kind: "invalid" (the request is wrong: 400), "cancelled", "deadline" (504), "error" (500).
      message: one line that may be shown to the client.
    """

    kind: str
    message: str


Event = Preview | Picture | Delta | Finished | Failed


class QueueFull(Exception):
    """No place: try again in `after` seconds."""

    def __init__(self, after: float):
        super().__init__(f"the server has no room for another request: try again in {after:.0f} s")
        self.after = after


class Ticket(Protocol):
    """A job that was taken."""

    def cancel(self) -> None:
        """Frees its place within one block; `Failed("cancelled")` follows unless it has ended. From any thread."""
        ...


class Engine(Protocol):
    """Owns the device; every method may be called from any thread."""

    @property
    def ready(self) -> bool:
        """Whether all programs are compiled."""
        ...

    @property
    def failed(self) -> bool:
        """Whether it has stopped by itself, by a fault: it never does anything again."""
        ...

    def submit(
        self, job: Job, on_event: Callable[[Event], None], deadline: float | None = None
    ) -> Ticket:
        """Takes a job.

        Args:
          job: what to do.
          on_event: called in the engine's thread with every event in order, exactly one `Finished` or `Failed` at
            the end; it must not block.
          deadline: of `time.monotonic()`; past it the job fails with "deadline".

        Raises:
          QueueFull: too many wait.
          UserError: the job can never be done: too long, impossible settings.
        """
        ...

    def stats(self) -> Mapping[str, Any]:
        """Numbers for /metrics, kind of job -> name -> number: jobs that wait, run and have ended, and how; rows,
        blocks, tokens or codes that were made; seconds."""
        ...

    def close(self, drain: bool = True) -> None:
        """Takes nothing more; with `drain` waits for what is running and waiting, else cancels it."""
        ...
