"""Packed rows of random content, as `janus_jax.data.pack` makes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from janus_jax.config import JanusConfig
from janus_jax.processing import sequence

Batch = dict[str, np.ndarray]

IMAGE_ID = 5  # of `<image_placeholder>`; words are above it
PROMPT = 30  # ids of a prompt, and of a question with its answer
_TEXT = (64, 512)  # ids of a text


def make_rows(
    config: JanusConfig,
    rows: int,
    tokens: int,
    pictures: bool,
    codes: bool = True,
    seed: int = 0,
) -> tuple[Batch, dict[str, Any]]:
    """(a batch, what is in it): sequences of a picture to draw, a text and a question in turn, as far as they fit.

    Each row begins with another kind, and a text fills what is left of it. There is room for as many targets and
    pictures as the fullest row has.

    Args:
      config: the model.
      rows: B.
      tokens: T, positions of a row.
      pictures: False makes texts alone.
      codes: pictures to draw are codes, as of a data set that was encoded beforehand; else pixels.
      seed: of lengths and contents.

    Returns:
      The content has the numbers of sequences by kind ("gen", "text", "und"), "tokens" (positions in use),
      "targets" (of the language head) and "segments" (lengths of each row's sequences).
    """
    rng = np.random.default_rng(seed)
    content: dict[str, Any] = {"gen": 0, "text": 0, "und": 0, "segments": []}
    filled = []
    for row in range(rows):
        parts = list(_fill_row(config, rng, tokens, row, pictures, codes, content))
        content["segments"].append([len(part["tokens"]) for part in parts])
        filled.append(parts)
    count = lambda name: max(sum(len(part[name]) for part in parts) for parts in filled)
    room = {"tokens": tokens, "targets": count("target_ids")}
    room |= {"und_images": count("und_images"), "gen_images": count("gen_starts")}
    packed = [pack_row(parts, room) for parts in filled]
    batch = {name: np.stack([row[name] for row in packed]) for name in packed[0]}
    content["tokens"] = int((batch["segment_ids"] > 0).sum())
    content["targets"] = int(batch["target_weights"].sum())
    return batch, content


def _fill_row(
    config: JanusConfig,
    rng: np.random.Generator,
    tokens: int,
    first: int,
    pictures: bool,
    codes: bool,
    content: dict[str, Any],
) -> Iterator[sequence.Features]:
    """The sequences of one row; counts them in `content`."""
    size, vq = config.siglip.image_size, config.vq
    empty = {"und_size": size, "gen_size": vq.image_size}
    empty_codes = vq.num_codes if codes else 0
    words = lambda n: rng.integers(IMAGE_ID + 1, config.decoder.vocab_size - 1, n).tolist()
    pixels = lambda side: rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
    lengths = {"gen": PROMPT + vq.num_codes - 1, "und": config.siglip.num_patches + PROMPT}
    kinds = ("gen", "text", "und") if pictures else ("text",)
    left, turn, missed = tokens, first, 0
    while left >= PROMPT and missed < len(kinds):
        kind = kinds[turn % len(kinds)]
        turn += 1
        length = lengths[kind] if kind in lengths else min(left, int(rng.integers(*_TEXT)))
        if length > left:
            missed += 1
            continue
        missed, left = 0, left - length
        content[kind] += 1
        if kind == "gen":
            picture = (
                rng.integers(0, vq.codebook_size, vq.num_codes).astype(np.int32)
                if codes
                else pixels(vq.image_size)
            )
            yield sequence.generation_sequence(words(PROMPT), IMAGE_ID, vq.num_codes, picture, size)
        elif kind == "und":
            asked = [*words(1), *[IMAGE_ID] * config.siglip.num_patches, *words(PROMPT // 2 - 1)]
            turns = [(asked, words(PROMPT - PROMPT // 2))]
            image = pixels(size)[None]
            yield sequence.conversation(
                turns, IMAGE_ID, image, vq.image_size, num_codes=empty_codes
            )
        else:
            yield sequence.text_sequence(words(length), **empty, num_codes=empty_codes)


def pack_row(parts: list[sequence.Features], room: dict[str, int]) -> Batch:
    """One row, filled from its start; `room` as in `janus_jax.data.PackedShape`."""
    tokens, targets = room["tokens"], room["targets"]
    row = {
        name: np.zeros(tokens, np.int32)
        for name in ("tokens", "token_types", "segment_ids", "positions")
    }
    kinds = ("target_ids", "target_positions", "target_tasks", "target_sources")
    row |= {name: np.zeros(targets, np.int32) for name in kinds}
    row["target_weights"] = np.zeros(targets, np.float32)
    generated = "gen_codes" if "gen_codes" in parts[0] else "gen_images"
    for name, count in (("und_images", "und_images"), (generated, "gen_images")):
        like = parts[0][name]
        row[name] = np.zeros((room[count], *like.shape[1:]), like.dtype)
    row["gen_starts"] = np.zeros(room["gen_images"], np.int32)
    row["gen_sources"] = np.zeros(room["gen_images"], np.int32)
    row["gen_weights"] = np.zeros(room["gen_images"], np.float32)
    used = dict.fromkeys(("tokens", "targets", "und", "gen"), 0)
    for segment, part in enumerate(parts, 1):
        begin, n = used["tokens"], len(part["tokens"])
        here = slice(begin, begin + n)
        row["tokens"][here], row["token_types"][here] = part["tokens"], part["token_types"]
        row["segment_ids"][here], row["positions"][here] = segment, np.arange(n)
        there = slice(used["targets"], used["targets"] + len(part["target_ids"]))
        for name in kinds:
            row[name][there] = part[name] + (begin if name == "target_positions" else 0)
        row["target_weights"][there] = 1
        for name, count in (("und_images", "und"), (generated, "gen")):
            images = part[name]
            row[name][used[count] : used[count] + len(images)] = images
            used[count] += len(images)
        starts = slice(used["gen"] - len(part["gen_starts"]), used["gen"])
        row["gen_starts"][starts], row["gen_weights"][starts] = part["gen_starts"] + begin, 1
        used["tokens"] += n
        used["targets"] = there.stop
    return row
