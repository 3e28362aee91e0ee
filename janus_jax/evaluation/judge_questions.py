"""Asking a judge many questions: several at once, each only once, and what failed counted, never lost."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.evaluation.endpoint import JudgeError
from janus_jax.evaluation.generation.journal import Journal

WORKERS = 8
GIVE_UP = 10  # questions in a row to which a server gives no answer, each after all its tries
Progress = Callable[[int, int], None]  # (questions that are asked, questions in all)
Ask = Callable[[], Any]  # asks one question; returns what JSON can hold, or raises JudgeError


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


class JudgeQuestions:
    """Questions to one judge.

    Args:
      name: of the judge; answers of another one are never taken for its own.
      cache: JSON lines, one an answer, beside the predictions: what is in it is not asked again, what failed
        is. None keeps them in memory alone.
      workers: questions at once.
      recall_failures: whether those in the file count until they are answered; otherwise those of this process
        alone do.

    Attributes:
      name: of the judge.
      failed: key of a question -> why there is no answer.
      given_up: why the judge is asked no more; "" while it is.

    Raises:
      UserError: no number of workers, or the file is something else.
    """

    def __init__(
        self,
        name: str,
        cache: str | Path | None = None,
        workers: int = WORKERS,
        recall_failures: bool = False,
    ):
        if type(workers) is not int or not 1 <= workers <= 256:
            raise UserError(f"a judge is asked 1 to 256 questions at once, not {workers!r}")
        self.name, self.failed, self.given_up = name, {}, ""
        self._answers: dict[str, Any] = {}
        self._tried: set[str] = set()  # by this process
        self._in_a_row, self._lock, self._workers = 0, threading.Lock(), workers
        self._journal = Journal(cache, {"answers of": "judges"}, ("key",)) if cache else None
        for line in self._journal.lines if self._journal else ():
            self._recall(line)
        if not recall_failures:
            self.failed.clear()

    def key(self, *parts: Any) -> str:
        """The name of a question in the file."""
        text = json.dumps([self.name, *parts])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def is_settled(self, key: str) -> bool:
        """Whether a question has its answer, or none after all tries."""
        return key in self._answers or key in self._tried

    def answer(self, key: str, ask: Ask) -> Any:
        """The answer to a question, asked if need be; None where there is none, which is counted."""
        if not self.is_settled(key):
            self._settle(key, ask)
        return self._answers.get(key)

    def answer_all(self, questions: Mapping[str, Ask], progress: Progress | None = None) -> None:
        """Asks what is not settled, several at once; `answer` then has it.

        Args:
          questions: key -> how it is asked.
          progress: told after each.
        """
        todo = {key: ask for key, ask in questions.items() if not self.is_settled(key)}
        if progress:
            progress(0, len(todo))
        pool = ThreadPoolExecutor(self._workers, "judge")
        try:
            futures = [pool.submit(self._settle, key, ask) for key, ask in todo.items()]
            for done, future in enumerate(as_completed(futures), 1):
                future.result()  # such as a full disk
                if progress:
                    progress(done, len(todo))
        finally:
            pool.shutdown(cancel_futures=True)

    def problem(self) -> str:
        """In one line how many questions have no answer and why; "" if all have one."""
        if not self.failed:
            return ""
        (reason, _), *others = Counter(self.failed.values()).most_common()
        more = f", and {_counted(len(others), 'other reason')}" if others else ""
        end = "; it was asked no more" if self.given_up else ""
        return (
            f"the judge {self.name} gave no answer to {_counted(len(self.failed), 'question')} "
            f"({reason}{more}){end}"
        )

    def _settle(self, key: str, ask: Ask) -> None:
        if self.given_up:
            self._fail(key, self.given_up)
            return
        try:
            answer = ask()
        except Exception as error:  # a function of somebody else may raise anything
            known = isinstance(error, JudgeError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            self._fail(key, untrusted.printable(" ".join(reason.split()), 200))
            with self._lock:
                self._in_a_row += not known or error.passes
                if self._in_a_row >= GIVE_UP and not self.given_up:
                    self.given_up = self.failed[key]
            return
        with self._lock:
            self._in_a_row = 0
            self._write({"key": key, "judge": self.name, "answer": answer})

    def _fail(self, key: str, reason: str) -> None:
        with self._lock:
            self._tried.add(key)
            self._write({"key": key, "judge": self.name, "failed": reason})

    def _write(self, line: dict[str, Any]) -> None:
        self._recall(line)
        if self._journal:
            self._journal.add(line)

    def _recall(self, line: Mapping[str, Any]) -> None:
        """A later line about a question takes the place of an earlier one."""
        key = line.get("key")
        if not isinstance(key, str) or line.get("judge") != self.name:
            return
        if "failed" in line:
            self.failed[key] = untrusted.printable(line["failed"], 200)
        else:
            self.failed.pop(key, None)
            self._answers[key] = line.get("answer")
