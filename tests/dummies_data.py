"""Small examples of every kind, for tests of packing, mixtures and losses."""

import numpy as np

from janus_jax.data import Generation, Text, Understanding
from janus_jax.processing import Processor, ProcessorConfig, build_word_tokenizer

WORDS = tuple(f"w{i}" for i in range(50))
TOKENIZER = build_word_tokenizer(WORDS)
# Pictures smaller than a model's: the layout is the same.
PROCESSOR = Processor(
    ProcessorConfig(und_image_size=16, gen_image_size=16, num_image_tokens=9, num_codes=36),
    TOKENIZER,
)
_STREAMS = ("und", "text", "gen", "pictures", "pairs")


class DummySource:
    """Random words and noise: example i of a task and seed is always the same.

    Args:
      task: "und", "text", "gen", "pictures" or "pairs".
      seed: another seed gives other examples.
      size: number of examples.
      longest: most words of a text.
      turns: most turns about a picture.
      chat: text comes as conversations; None: every other one.
      codes: codes of a generated picture, if it comes as codes.
      weight: of the examples.
      side: of the pictures, pixels.
    """

    def __init__(
        self,
        task,
        seed=0,
        size=100_000,
        longest=12,
        turns=3,
        chat=None,
        codes=0,
        weight=1.0,
        side=20,
    ):
        if task not in _STREAMS:
            raise ValueError(task)
        self._turns = turns
        self._task, self._seed, self._size, self._longest = task, seed, size, longest
        self._chat, self._codes, self._weight, self._side = chat, codes, weight, side

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        rng = np.random.default_rng((self._seed, _STREAMS.index(self._task), int(index)))
        chat = bool(index % 2) if self._chat is None else self._chat
        common = {"weight": self._weight}
        if self._task == "und":
            turns = [
                (self._words(rng), self._words(rng))
                for _ in range(rng.integers(1, self._turns + 1))
            ]
            return Understanding(images=[self._picture(rng)], turns=turns, **common)
        if self._task == "text" and chat:
            return Text(turns=[(self._words(rng), self._words(rng))], **common)
        if self._task == "text":
            return Text(text=self._words(rng), **common)
        prompt = self._words(rng)
        if self._codes:
            codes = rng.integers(0, 64, self._codes)
            return Generation(prompt=prompt, codes=codes, **common)
        return Generation(prompt=prompt, picture=self._picture(rng), **common)

    def _words(self, rng):
        return " ".join(
            WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(2, self._longest))
        )

    def _picture(self, rng):
        # Coarse, so that it survives resizing.
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        return coarse.repeat(self._side // 4, 0).repeat(self._side // 4, 1)
