"""What a server must hold, beside how fast it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from benchmarks.serving.client import Answer


@dataclasses.dataclass(frozen=True)
class Check:
    """Something that must be so; `passed` is None where it could not be judged."""

    name: str
    passed: bool | None
    about: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Same:
    """Collects answers, and whether equal requests had equal ones, byte for byte."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int], tuple[str, str]] = {}
        self.different: list[str] = []
        self.compared = 0

    def add(self, answers: Iterable[Answer], where: str) -> None:
        """Compares those that have a digest; `where` is said of one that differs."""
        for answer in answers:
            if answer.digest is None:
                continue
            key = (answer.ask.name, answer.ask.number)
            digest, before = self._first.setdefault(key, (answer.digest, where))
            self.compared += 1
            if digest != answer.digest:
                self.different.append(
                    f"{key[0]} {key[1]}: {before} {digest}, {where} {answer.digest}"
                )

    def check(self, name: str) -> Check:
        """Whether all were."""
        about = f"{len(self._first)} requests, {self.compared} answers"
        if self.different:
            about += f", {len(self.different)} differ: " + "; ".join(self.different[:5])
        return Check(name, not self.different, about)


def unexpected(answers: Iterable[Answer]) -> list[str]:
    """Those that ended otherwise than they must: neither as asked, nor aborted by us, nor refused for room."""
    wrong = []
    for answer in answers:
        as_asked = answer.ended == "answered" and answer.status == answer.ask.status
        as_asked &= answer.code is None or answer.status != 200
        if not (as_asked or answer.ended == "aborted" or answer.refused):
            wrong.append(answer.about())
    return wrong


def check_ended(answers: Iterable[Answer], name: str = "every request ended as it must") -> Check:
    """Whether all did."""
    answers = list(answers)
    wrong = unexpected(answers)
    about = f"{len(answers)} requests"
    if wrong:
        about += f", {len(wrong)} did not: " + "; ".join(wrong[:5])
    return Check(name, bool(answers) and not wrong, about)
