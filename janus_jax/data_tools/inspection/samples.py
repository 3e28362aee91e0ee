"""Records as the model reads them: every token, which of them are learnt, and the pictures after resizing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from janus_jax.data import Example, Generation, Rejected, read_example
from janus_jax.data_tools.inspection.reading import Part, Reading
from janus_jax.data_tools.inspection.scan import encoded, words
from janus_jax.processing import TOKEN_GEN, TOKEN_TEXT, Features, Tokenizer, data_uri
from janus_jax.processing.tokenizer import SPECIAL_TOKENS, UNK

TRIED = 50  # records after one that is left out, of which the first usable is shown


@dataclasses.dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of one kind.

    Attributes:
      text: the words of them, or the name of a control token.
      tokens: how many there are.
      control: it is a control token, so many times.
      learnt: the loss asks for them.
      codes: it stands for so many codes of a picture to draw; 0 for what is no such picture.
    """

    text: str
    tokens: int
    control: bool
    learnt: bool
    codes: int = 0


@dataclasses.dataclass(frozen=True)
class Sample:
    """One record.

    Attributes:
      index: in its source.
      record: where it is, for people.
      tokens, targets: lengths of its sequence; targets are learnt tokens, no codes.
      shortened: to fit a row.
      said: all its words, where the tokenizer does not know some of them; else "".
      note: what else there is to say of it; "" for nothing.
      pieces: the sequence.
      shown: pictures to understand as the model sees them, made smaller, as `data:` addresses.
      drawn: the picture to draw, likewise; "" where there is none, or codes that nothing can decode.
      has_codes: the picture to draw comes as codes.
    """

    index: int
    record: str
    tokens: int
    targets: int
    shortened: bool
    said: str
    note: str
    pieces: tuple[Piece, ...]
    shown: tuple[str, ...] = ()
    drawn: str = ""
    has_codes: bool = False


def samples(
    reading: Reading,
    part: Part,
    indices: Sequence[int],
    count: int,
    paint: Callable[[np.ndarray], np.ndarray] | None,
) -> Iterator[Sample]:
    """Some records that are used, spread evenly over a source.

    Args:
      reading: what the run reads.
      part: the source.
      indices: of the records to choose from.
      count: how many to show.
      paint: codes, int [N], -> pixels, uint8 [h, w, 3]; None leaves them codes.
    """
    count = min(count, len(indices))
    encoder = reading.encoder()
    for nth in range(count):
        first, end = nth * len(indices) // count, (nth + 1) * len(indices) // count
        for place in range(first, min(end, first + TRIED)):
            index = indices[place]
            example = read_example(part.source.examples, index)
            found = None if isinstance(example, Rejected) else encoded(encoder, example)
            if found is None or isinstance(found, Rejected):
                continue
            yield _sample(reading, part, index, example, found.features, found.shortened, paint)
            break


def _sample(
    reading: Reading,
    part: Part,
    index: int,
    example: Example,
    features: Features,
    shortened: bool,
    paint: Callable[[np.ndarray], np.ndarray] | None,
) -> Sample:
    describe = getattr(part.source.examples, "describe", lambda index: f"record {index}")
    drawn, codes = "", features.get("gen_codes", ())
    if len(codes):
        drawn = data_uri(paint(codes[0])) if paint else ""
    elif len(features.get("gen_images", ())):
        drawn = data_uri(features["gen_images"][0])
    tokenizer = reading.experiment.processor.tokenizer
    unknown = tokenizer.token_id(UNK)
    return Sample(
        index=index,
        record=describe(index),
        tokens=len(features["tokens"]),
        targets=len(features["target_ids"]),
        shortened=shortened,
        said=words(example) if unknown is not None and unknown in features["tokens"] else "",
        note=_note(reading, example),
        pieces=tuple(pieces(features, tokenizer)),
        shown=tuple(map(data_uri, features["und_images"])),
        drawn=drawn,
        has_codes=bool(len(codes)),
    )


def _note(reading: Reading, example: Example) -> str:
    notes = []
    share = reading.stage.condition_dropout
    if isinstance(example, Generation) and share:
        if example.dropout_draw is None:
            notes.append(f"each time with {share:.0%} probability its prompt is padding")
        elif example.dropout_draw < share:
            notes.append("its prompt is always padding")
    if example.weight != 1:
        notes.append(f"weight {example.weight:g} in the loss")
    return ", ".join(notes)


def pieces(features: Features, tokenizer: Tokenizer) -> Iterator[Piece]:
    """The sequence in pieces, in its order.

    Args:
      features: of one sequence (`processing.sequence`).
      tokenizer: that made it.
    """
    tokens, types = features["tokens"], features["token_types"]
    learnt = np.zeros(len(tokens), bool)
    learnt[features["target_positions"][features["target_weights"] > 0] + 1] = True
    learnt[types == TOKEN_GEN] = bool((features["gen_weights"] > 0).any())
    names = {tokenizer.token_id(name): name for name in SPECIAL_TOKENS}
    names.pop(None, None)
    # What a token is: a picture's slot, a control token, or part of a text.
    kinds = [
        (
            "slot" if kind != TOKEN_TEXT else names.get(int(token), "text"),
            int(kind),
            bool(is_learnt),
        )
        for token, kind, is_learnt in zip(tokens, types, learnt, strict=True)
    ]
    start = 0
    for end in range(1, len(kinds) + 1):
        if end < len(kinds) and kinds[end] == kinds[start]:
            continue
        name, kind, is_learnt = kinds[start]
        part = tokens[start:end]
        text = tokenizer.decode(part) if name == "text" else name
        codes = len(part) + 1 if kind == TOKEN_GEN else 0
        if name == "slot":
            text = names[int(part[0])]
        yield Piece(text, len(part), name != "text", is_learnt, codes)
        start = end
