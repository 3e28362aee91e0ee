"""A question of a benchmark, whatever file it came from, and a sequence of them that is read when needed."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from janus_jax import untrusted
from janus_jax.errors import UserError, nearest
from janus_jax.processing.image import load_image


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A picture that stays in its file until it is called.

    Attributes:
      name: of the file, or where it is in one; for people.
      fetch: gives the encoded picture, such as the bytes of a JPEG file; raises UserError.
    """

    name: str
    fetch: Callable[[], bytes]

    def __call__(self) -> np.ndarray:
        """Pixels uint8 [H, W, 3].

        Raises:
          UserError: it is missing, cut off, or no picture.
        """
        return np.asarray(load_image(io.BytesIO(self.fetch())))


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """One question. Texts are as the file has them, without those that stand for "nothing".

    Attributes:
      index: the name of the question in its benchmark; no two have the same.
      question: what is asked, without any instruction of a protocol.
      answer: the true answer as the file has it; "Yes" or "No" in POPE and MME, whatever their case; "" where the
        file keeps it secret.
      answers: all answers that are right, by default the one: some open questions of MMMU have several.
      options: letter -> text, in order; none for open questions.
      hint: a text that belongs before the question.
      pictures: in order; several in MMMU.
      category: POPE's subsets with commas between, MME's subtask, MMBench's and SEED's ability, GQA's kind of
        question, MMMU's subject, MM-Vet's abilities with commas between.
      groups: what the category belongs to: POPE's subsets, "perception" or "cognition", MMBench's l2-category,
        MMMU's discipline, MM-Vet's abilities.
      split: of the data set, such as "validation"; of SEED-Bench "image" or "video"; "" where there is one alone.
      picture_key: the same for questions about the same picture; MME counts them together.
      fields: the row as the file has it, without its pictures.
    """

    index: str
    question: str
    answer: str
    answers: tuple[str, ...] = ()
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hint: str = ""
    pictures: tuple[Picture, ...] = ()
    category: str = ""
    groups: tuple[str, ...] = ()
    split: str = ""
    picture_key: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.answers and self.answer:
            object.__setattr__(self, "answers", (self.answer,))


class TableRow(dict[str, Any]):
    """The fields of a row of a table of VLMEvalKit, which its own scorer takes as they are."""


# Wraps the positions of rows while they are read for the first time, such as tqdm.
Progress = Callable[[range], Iterable[int]]


class Rows(Protocol):
    """The rows of a benchmark's files: what a reader gives."""

    def __len__(self) -> int: ...

    def fields(self, position: int) -> dict[str, Any]:
        """A row without its pictures."""
        ...

    def pictures(self, position: int) -> tuple[Picture, ...]: ...

    def describe(self, position: int) -> str:
        """Where the row is, for people."""
        ...


class Items(Sequence[Item]):
    """The questions of a benchmark at random; an item is made when it is asked for, its pictures when called.

    Opening reads all rows once, without their pictures, and refuses files that would give wrong numbers.

    Args:
      benchmark: its name.
      rows: of the files.
      make: (fields, pictures) -> item.
      split: only the items of this split, and of none; None: all.
      warnings: what a person should know about the files.
      other: what makes them others than those that published numbers are of, such as "another file"; "" for
        nothing that is known.

    Attributes:
      benchmark, warnings, other: as given.
      indices: of the items, in order.
      categories: of the items -> how many.

    Raises:
      UserError: a row without an index, or with one that another row has; a row that is no question of this
        benchmark; no row of the split.
    """

    def __init__(
        self,
        benchmark: str,
        rows: Rows,
        make: Callable[[Mapping[str, Any], tuple[Picture, ...]], Item],
        split: str | None = None,
        warnings: Sequence[str] = (),
        other: str = "",
    ):
        self.benchmark, self.warnings, self.other = benchmark, tuple(warnings), other
        self._rows, self._make = rows, make
        self._positions: dict[str, int] = {}
        self.categories: dict[str, int] = {}
        splits: dict[str, int] = {}
        for position in range(len(rows)):
            item = self._read(position, ())
            if not item.index:
                raise UserError(f"{rows.describe(position)}: it has no index")
            splits[item.split] = splits.get(item.split, 0) + 1
            if split is not None and item.split not in ("", split):
                continue
            if item.index in self._positions:
                raise UserError(
                    f"{rows.describe(position)}: its index {untrusted.shown(item.index)} is also that of "
                    f"{rows.describe(self._positions[item.index])}; every question needs one of its own"
                )
            self._positions[item.index] = position
            self.categories[item.category] = self.categories.get(item.category, 0) + 1
        self.indices = list(self._positions)
        if not self.indices:
            found = ", ".join(f"{untrusted.printable(name)} ({n})" for name, n in splits.items())
            if split is None:
                raise UserError(f"{benchmark}: there is no question in the files")
            raise UserError(
                f"{benchmark}: no question is of the split {split!r}; the file has {found or 'none'}."
                + nearest(split, splits)
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number):
        """Item `number`; of a slice a list."""
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        return self.find(self.indices[number])

    def __iter__(self) -> Iterator[Item]:
        return map(self.find, self.indices)

    def find(self, index: str) -> Item:
        """The item of an index.

        Raises:
          UserError: there is none.
        """
        if index not in self._positions:
            raise UserError(
                f"{self.benchmark} has no question with the index {untrusted.shown(index)}."
                + nearest(str(index)[:100], self.indices[:2000])
            )
        position = self._positions[index]
        return self._read(position, self._rows.pictures(position))

    def describe(self, index: str) -> str:
        """Where an item is in its file, for people."""
        return self._rows.describe(self._positions[index])

    def _read(self, position: int, pictures: tuple[Picture, ...]) -> Item:
        try:
            return self._make(self._rows.fields(position), pictures)
        except untrusted.SENSELESS as error:
            if isinstance(error, UserError):
                raise UserError(f"{self._rows.describe(position)}: {error}") from error
            raise UserError(
                f"{self._rows.describe(position)}: its values make no sense "
                f"({type(error).__name__}: {untrusted.printable(error, 100)})"
            ) from error
