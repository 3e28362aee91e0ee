"""Every record of a source, laid out as a run would lay it out, and counted.

Pictures are opened, as a record with a broken one is left out; they are measured and let go, so that memory does
not grow with the data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from janus_jax.data import (
    EncodingMistake,
    Example,
    Generation,
    Picture,
    Rejected,
    SequenceEncoder,
    Source,
    Text,
    Understanding,
    read_example,
)
from janus_jax.data.encode import open_picture
from janus_jax.data.reading import Encoded
from janus_jax.data.rejects import NO_ROOM
from janus_jax.data_tools.inspection.distribution import Distribution
from janus_jax.data_tools.inspection.reading import SMALL, Part, Reading
from janus_jax.processing.tokenizer import UNK

TOGETHER = 8  # neighbouring records that one thread reads, at most
KEPT = 0.999999  # a draw with which a prompt is not dropped
SHOWN = 20  # rejected records of each reason that are kept to be shown
MISTAKE = "a run stops here"
_BLANK = np.zeros((SMALL, SMALL, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class Seen:
    """One record.

    Attributes:
      index: in its source.
      rejected: why it is left out; None if it is used.
      shortened: it was, to fit a row.
      tokens, targets: of its sequence; targets are learnt tokens, no codes.
      answers: lengths of its answers, in tokens, the end of sequence with them.
      prompt: tokens before the first picture to draw; 0 where there is none.
      unknown: tokens that the tokenizer has no word for.
      pictures: (width, height) of those that were opened.
      text: hash of all its words.
    """

    index: int
    rejected: Rejected | None = None
    shortened: bool = False
    tokens: int = 0
    targets: int = 0
    answers: tuple[int, ...] = ()
    prompt: int = 0
    unknown: int = 0
    pictures: tuple[tuple[int, int], ...] = ()
    text: int = 0


class SourceCounts:
    """What was found in one source."""

    def __init__(self, part: Part, side: int):
        self.part, self.side = part, side
        self.records = len(part.source.examples)
        self.read = self.used = self.shortened = self.smaller = self.unknown = 0
        self.rejected: Counter[str] = Counter()
        self.shown: list[dict[str, Any]] = []  # of the rejected ones
        self.tokens, self.targets = Distribution(), Distribution()
        self.answers, self.prompts = Distribution(), Distribution()
        self.pictures = Distribution()  # in a record
        self.widths, self.heights = Distribution(), Distribution()
        self._texts, self._indices = array("Q"), array("q")

    @property
    def bad(self) -> int:
        """Records that count against `data.max_rejected`, or at which a run stops."""
        return sum(self.rejected.values()) - self.rejected[NO_ROOM]

    @property
    def usable(self) -> float:
        """Estimate of how many of all records are used."""
        return self.records * self.used / self.read if self.read else 0.0

    def add(self, seen: Seen) -> None:
        self.read += 1
        if seen.rejected is not None:
            self.rejected[seen.rejected.reason] += 1
            return
        self.used += 1
        self.shortened += seen.shortened
        self.unknown += seen.unknown
        self.tokens.add([seen.tokens])
        if seen.answers:
            self.targets.add([seen.targets])
            self.answers.add(seen.answers)
        if seen.prompt:
            self.prompts.add([seen.prompt])
        self.pictures.add([len(seen.pictures)])
        for width, height in seen.pictures:
            self.widths.add([width])
            self.heights.add([height])
            # A picture to draw is cropped to a square, one to understand is padded to it.
            decides = min if self.part.task == "gen" else max
            self.smaller += decides(width, height) < self.side
        self._texts.append(seen.text)
        self._indices.append(seen.index)

    def keep(self, rejection: dict[str, Any]) -> None:
        """Remembers a rejected record to show it, if there are not enough of its reason."""
        if self.rejected[rejection["reason"]] <= SHOWN:
            self.shown.append(rejection)

    def repeats(self, most: int = 5) -> tuple[int, list[tuple[int, int]]]:
        """(records whose words an earlier one has, [(index of the first, how many)] of the most frequent)."""
        if not self._texts:
            return 0, []
        hashes = np.frombuffer(self._texts, np.uint64)
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        order = [i for i in np.argsort(-counts, kind="stable")[:most] if counts[i] > 1]
        found = [(int(self._indices[first[i]]), int(counts[i])) for i in order]
        return len(hashes) - len(counts), found


def chosen(records: int, limit: int) -> Sequence[int]:
    """All indices, or `limit` of them spread evenly."""
    if not limit or limit >= records:
        return range(records)
    return [i * records // limit for i in range(limit)]


def scan(
    reading: Reading,
    part: Part,
    limit: int,
    threads: int,
    listing: BinaryIO,
    tick: Callable[[int], object] = lambda count: None,
) -> SourceCounts:
    """Reads a source once, in the order of its records.

    Args:
      reading: what the run reads.
      part: one of its sources.
      limit: of the records, spread evenly; 0 for all.
      threads: that read.
      listing: gets one line of JSON for every record that is left out.
      tick: told how many more records were read.
    """
    source = part.source.examples
    config = reading.experiment.processor.config
    counts = SourceCounts(
        part, config.gen_image_size if part.task == "gen" else config.und_image_size
    )
    look = _Look(reading, part)
    describe = getattr(source, "describe", lambda index: f"record {index}")
    for seen in _in_order(look, chosen(len(source), limit), *_shared_out(source, threads)):
        for each in seen:
            counts.add(each)
            if each.rejected is None:
                continue
            line = {
                "stage": reading.stage.name,
                "source": part.label,
                "index": each.index,
                "record": describe(each.index),
                "reason": each.rejected.reason,
                "detail": each.rejected.detail,
            }
            listing.write(json.dumps(line).encode() + b"\n")
            counts.keep(line)
        tick(len(seen))
    return counts


def _shared_out(source: Source, threads: int) -> tuple[int, int]:
    """(threads, neighbours that each reads): few enough that all are in one block of the source, or in two.

    A source that is read in blocks, such as Parquet, keeps a few: with more, each would be read many times.
    """
    blocks = getattr(source, "blocks", None)
    if blocks is None:
        return threads, TOGETHER
    size = int(np.median(np.diff(np.append(blocks, len(source)))))
    threads = max(1, min(threads, size))
    return threads, max(1, min(TOGETHER, size // threads))


def _in_order(
    look: Callable[[int], Seen], indices: Sequence[int], threads: int, together: int
) -> Iterator[list[Seen]]:
    """What `look` finds, `together` records at a time, of which no more wait than threads need."""
    groups = (indices[i : i + together] for i in range(0, len(indices), together))
    look_at = lambda group: [look(index) for index in group]
    with ThreadPoolExecutor(threads, "inspecting") as pool:
        waiting: deque = deque()
        try:
            for group in groups:
                waiting.append(pool.submit(look_at, group))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Look:
    """Looks at one record; several threads may."""

    def __init__(self, reading: Reading, part: Part):
        self._source, self._encoder = part.source.examples, reading.encoder(small=True)
        self._unknown = reading.experiment.processor.tokenizer.token_id(UNK)

    def __call__(self, index: int) -> Seen:
        example = read_example(self._source, index)
        if isinstance(example, Rejected):
            return Seen(index, example)
        sizes: list[tuple[int, int]] = []
        found = encoded(self._encoder, _measured(example, sizes))
        if isinstance(found, Rejected):
            return Seen(index, found)
        features = found.features
        positions, starts = features["target_positions"], features["gen_starts"]
        breaks = np.flatnonzero(np.diff(positions) > 1) + 1
        unknown = 0 if self._unknown is None else int((features["tokens"] == self._unknown).sum())
        return Seen(
            index,
            shortened=found.shortened,
            tokens=len(features["tokens"]),
            targets=len(positions),
            answers=tuple(len(run) for run in np.split(positions, breaks) if len(run)),
            prompt=int(starts[0]) + 1 if len(starts) else 0,
            unknown=unknown,
            pictures=tuple(sizes),
            text=_hash(words(example)),
        )


def encoded(encoder: SequenceEncoder, example: Example) -> Encoded | Rejected:
    """What the encoder makes of an example with its prompt; what would end a run is a rejection, too."""
    if isinstance(example, Generation) and example.dropout_draw is None:
        example = dataclasses.replace(example, dropout_draw=KEPT)
    try:
        return encoder.encode(example)
    except EncodingMistake as error:
        return Rejected(MISTAKE, str(error))


def words(example: Example) -> str:
    """All that an example says."""
    if isinstance(example, Generation):
        return example.prompt
    if isinstance(example, Text) and example.text:
        return example.text
    return "\n".join(part for turn in example.turns for part in turn)


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest)


def _measured(example: Example, sizes: list[tuple[int, int]]) -> Example:
    """The example with pictures that say how large they are, once they are opened, and are blank."""

    def opening(picture: Picture) -> Callable[[], np.ndarray]:
        def opened() -> np.ndarray:
            sizes.append(open_picture(picture).size)
            return _BLANK

        return opened

    if isinstance(example, Understanding):
        return dataclasses.replace(example, images=[opening(p) for p in example.images])
    if isinstance(example, Generation) and example.picture is not None:
        return dataclasses.replace(example, picture=opening(example.picture))
    return example
