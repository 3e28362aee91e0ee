"""Emoji scenes as Grain sources: record i is always the same, on every machine.

Three kinds of training sequence (understanding, text, generation), and two kinds of plain record for
stage 0 (pictures for the tokenizer, pictures with descriptions for the understanding encoder).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.emoji.language import (
    DESCRIBE,
    DESCRIBE_IN_DETAIL,
    KIND_TASKS,
    QUESTION_KINDS,
    caption,
    description,
    detailed_caption,
    drawing_in_words,
    fact,
    picture_in_words,
    question,
)
from janus_jax.emoji.scene import Scene, random_scene, render
from janus_jax.emoji.world import World
from janus_jax.processing import Processor, generation_pixels, understanding_pixels
from janus_jax.processing import sequence as seq

# Sequence kinds of one example get different random streams from the same record index.
_STREAMS = {"und": 1, "text": 2, "gen": 3, "pictures": 4, "pairs": 5}
_CROWDED = ("mixed", "dense")  # tasks of scenes that are captioned in detail


@dataclasses.dataclass(frozen=True)
class SceneMix:
    """Which scenes a stage shows.

    Attributes:
      tasks: task -> weight, for scenes that are drawn or described.
      detailed: share of those that instead show crowded scenes and tell all that is in them: every
        object with its place, and the background. A short caption leaves most of a picture open and
        says little about each code; this one leaves nothing open.
      describe: share of understanding examples that ask for a caption instead of a question.
      questions: most questions about one picture, asked one after the other in one conversation.
      yes_no: share of these that ask whether something is there, besides those that do so by chance:
        of all it is the hardest to learn, because nothing in the picture says "no".
      chat: text comes as conversations like those about pictures and like requests to draw, but with the
        picture in words; otherwise as plain text.
      drawings: share of these conversations that draw.
      condition_dropout: share of generation examples whose prompt becomes padding (Janus paper,
        footnote 2: 10 %).
    """

    tasks: Mapping[str, float]
    detailed: float = 0.0
    describe: float = 0.3
    questions: int = 1
    yes_no: float = 0.0
    chat: bool = False
    drawings: float = 0.3
    condition_dropout: float = 0.1


class SceneSource:
    """Random-access source of one kind of record.

    Args:
      kind: "und", "text" or "gen" (training sequences), "pictures" (tokenizer) or "pairs" (encoder).
      world: the world.
      processor: chat template, ids and picture sizes.
      mix: which scenes.
      seed: another seed is another data set; evaluation uses seeds that training does not.
      size: number of records.
      text_length: "pairs" only, ids per description (padded with the pad id).
      blank: leave all pictures black, where only the lengths of the records matter.
    """

    def __init__(
        self,
        kind: str,
        world: World,
        processor: Processor,
        mix: SceneMix,
        seed: int = 0,
        size: int = 10_000_000,
        text_length: int = 64,
        blank: bool = False,
    ):
        self._blank = blank
        self._world, self._processor, self._mix = world, processor, mix
        self._seed, self._size, self._text_length = seed, size, text_length
        self._stream = _STREAMS[kind]
        self._make = getattr(self, f"_{kind}")
        self._tasks = list(mix.tasks)
        weights = np.array([mix.tasks[t] for t in self._tasks], np.float64)
        self._cumulative = np.cumsum(weights / weights.sum())

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Any:
        rng = np.random.default_rng((self._seed, self._stream, int(index)))
        return self._make(rng)

    def _scene(self, rng: np.random.Generator) -> Scene:
        task = self._tasks[int(np.searchsorted(self._cumulative, rng.random(), side="right"))]
        return random_scene(rng, self._world, task)

    def _captioned(self, rng: np.random.Generator) -> tuple[Scene, str, bool]:
        """(scene, caption, whether it is a detailed one)."""
        if rng.random() < self._mix.detailed:
            task = _CROWDED[int(rng.integers(len(_CROWDED)))]
            scene = random_scene(rng, self._world, task)
            return scene, detailed_caption(scene, self._world), True
        scene = self._scene(rng)
        return scene, caption(scene, rng), False

    def _understanding_image(self, scene: Scene) -> np.ndarray:
        if self._blank:
            side = self._processor.config.und_image_size
            return np.zeros((side, side, 3), np.uint8)
        picture = Image.fromarray(render(scene, self._world))
        return understanding_pixels(picture, self._processor.config.und_image_size)

    def _generation_image(self, scene: Scene) -> np.ndarray:
        if self._blank:
            side = self._processor.config.gen_image_size
            return np.zeros((side, side, 3), np.uint8)
        picture = Image.fromarray(render(scene, self._world))
        return generation_pixels(picture, self._processor.config.gen_image_size)

    def _und(self, rng: np.random.Generator) -> seq.Features:
        scene, asked = self._asked(rng)
        processor = self._processor
        return seq.conversation(
            self._turns(asked, processor.understanding_ids(asked[0][0])),
            processor.tokenizer.image_id,
            self._understanding_image(scene)[None],
            processor.config.gen_image_size,
        )

    def _turns(self, asked: list[tuple[str, str]], first: list[int]) -> list[seq.Turn]:
        """Ids of questions and answers; `first` are those of the first question."""
        processor = self._processor
        prompts = [first, *(processor.next_question_ids(q) for q, _ in asked[1:])]
        return [(p, processor.answer_ids(a)) for p, (_, a) in zip(prompts, asked, strict=True)]

    def _asked(self, rng: np.random.Generator) -> tuple[Scene, list[tuple[str, str]]]:
        """A scene, and a request to describe it or some questions about it, with the answers."""
        if rng.random() >= self._mix.describe:
            return self._questions(rng)
        scene, answer, detailed = self._captioned(rng)
        requests = DESCRIBE_IN_DETAIL if detailed else DESCRIBE
        return scene, [(requests[int(rng.integers(len(requests)))], answer)]

    def _questions(self, rng: np.random.Generator) -> tuple[Scene, list[tuple[str, str]]]:
        """A scene and up to `questions` different (question, answer) about it."""
        kind = QUESTION_KINDS[int(rng.integers(len(QUESTION_KINDS)))]
        tasks = KIND_TASKS[kind]
        scene = random_scene(rng, self._world, tasks[int(rng.integers(len(tasks)))])
        fitting = [k for k in QUESTION_KINDS if scene.task in KIND_TASKS[k]]
        asked: dict[str, str] = {}
        absent: list[str] = []  # two of them could be a held-out pair, too
        for _ in range(self._mix.questions):
            if rng.random() < self._mix.yes_no:
                kind = "yes_no"
            qa = question(scene, kind, rng, self._world, absent)
            asked.setdefault(qa.text, qa.answer)
            if qa.answer == "no":
                _, _, _, name = qa.text.rstrip("?").split(" ", 3)  # "is there a panda face?"
                absent.append(name)
            kind = fitting[int(rng.integers(len(fitting)))]
        return scene, list(asked.items())

    def _text(self, rng: np.random.Generator) -> seq.Features:
        config, tokenizer = self._processor.config, self._processor.tokenizer
        if self._mix.chat:
            return self._text_conversation(rng)
        text = fact(self._scene(rng), rng, self._world)
        return seq.text_sequence(
            [tokenizer.bos_id, *tokenizer.encode_text(text), tokenizer.eos_id],
            config.und_image_size,
            config.gen_image_size,
        )

    def _text_conversation(self, rng: np.random.Generator) -> seq.Features:
        """Words stand where a picture would, between `<begin_of_image>` and `<end_of_image>`."""
        processor, world = self._processor, self._world
        config = processor.config
        if rng.random() < self._mix.drawings:
            scene, caption, _ = self._captioned(rng)
            drawing = drawing_in_words(scene, world)
            turns = [(processor.generation_ids(caption), processor.answer_ids(drawing))]
        else:
            scene, asked = self._asked(rng)
            words = picture_in_words(scene, world)
            turns = self._turns(asked, processor.text_ids(asked[0][0], picture=words))
        side = config.und_image_size
        return seq.conversation(
            turns,
            processor.tokenizer.image_id,
            np.zeros((0, side, side, 3), np.uint8),
            config.gen_image_size,
            seq.TASK_TEXT,
        )

    def _gen(self, rng: np.random.Generator) -> seq.Features:
        config, tokenizer = self._processor.config, self._processor.tokenizer
        scene, caption, _ = self._captioned(rng)
        ids = self._processor.generation_ids(caption)
        if rng.random() < self._mix.condition_dropout:
            ids = self._processor.unconditional_ids(ids)
        picture = self._generation_image(scene)
        return seq.generation_sequence(
            ids, tokenizer.image_id, config.num_codes, picture, config.und_image_size
        )

    def _pictures(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"image": self._generation_image(self._scene(rng))}

    def _pairs(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        tokenizer = self._processor.tokenizer
        scene = self._scene(rng)
        ids = tokenizer.encode_text(description(scene, self._world))[: self._text_length]
        padded = np.full(self._text_length, tokenizer.pad_id, np.int32)
        padded[: len(ids)] = ids
        return {"image": self._understanding_image(scene), "text": padded}
