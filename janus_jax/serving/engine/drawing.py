"""Pictures of many users, drawn together in blocks of codes."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from janus_jax.errors import UserError
from janus_jax.inference import Janus, checks, drawing, memory
from janus_jax.inference.batching import round_up
from janus_jax.inference.generator import prompt_number
from janus_jax.inference.logits import SamplingParams, make_sampling_params
from janus_jax.inference.previews import hide_undrawn
from janus_jax.inference.programs import Call, ProgramList, execute
from janus_jax.parallel import to_host
from janus_jax.processing.processor import unconditional_ids
from janus_jax.serving.engine.pool import Pool, Start
from janus_jax.serving.engine.scheduling import Output, Prepared, Row, RowDone
from janus_jax.serving.engine.sizes import sizes_that_fit
from janus_jax.serving.jobs import DrawJob, Job, Picture, Preview

STEPS = 48  # most codes of a block
SHORTEST = 16  # of the program's prompts, of which each length is four times the one before
REMEMBERED = 4  # prompts: their pictures may be drawn one after the other
WHITE = 255


class Drawn(NamedTuple):
    """What a job wants drawn.

    Attributes:
      ids: of the prompt, from BOS to BOI.
      seed: 0 to 2**32 - 1.
      sampling: of all its pictures.
      filtered: whether that has top-k or top-p.
      previews: how many of each picture.
    """

    ids: list[int]
    seed: int
    sampling: SamplingParams
    filtered: bool
    previews: int


class _Drawing:
    """A picture on its way: its row, and its codes so far."""

    def __init__(self, row: Row, total: int):
        self.row, self.total = row, total
        self.codes = np.zeros(total, np.int32)
        self.done = self.shown = 0

    @property
    def until_shown(self) -> int:
        """Codes up to the next preview or the end."""
        parts = self.row.work.previews + 1
        due = next(i for i in range(1, parts + 1) if i * self.total // parts > self.shown)
        return due * self.total // parts - self.done

    def add(self, new: np.ndarray) -> bool:
        """Takes new codes; whether the picture is to be shown."""
        due = self.until_shown <= len(new)
        self.codes[self.done : self.done + len(new)] = new
        self.done += len(new)
        if due:
            self.shown = self.done
        return due


class Drawing:
    """The `Worker` for pictures. All have an unconditional half: those without guidance do not read it.

    Args:
      janus: the model.
      sizes: numbers of pictures that programs are compiled for; the largest that fits is how many there can be.
      longest: tokens of the longest prompt.

    Raises:
      UserError: not even the smallest batch fits into memory.
    """

    kind = "draw"

    def __init__(self, janus: Janus, sizes: Sequence[int], longest: int):
        self._janus = janus
        self._total = janus.config.vq.num_codes
        longest = min(longest, janus.limits.longest_prompt(self._total))
        self._longest = longest
        self._lengths = [SHORTEST]
        while self._lengths[-1] < longest:
            self._lengths.append(4 * self._lengths[-1])
        self._lengths[-1] = round_up(max(longest, 1))
        steps = min(STEPS, self._total)
        self._engine = janus.slot_engine(2, True, self._lengths[-1] + self._total, steps)
        row = self._engine.pool_bytes(1) + 2 * 4 * 4 * janus.config.vq.codebook_size
        fixed = memory.decode_bytes(janus.config, 1)
        fixed += memory.prefill_bytes(janus.config, 2 * self._lengths[-1])
        fixed += (REMEMBERED + 1) * self._engine.prompt_bytes(self._lengths[-1])
        self._pool = Pool(
            self._engine,
            janus.weights,
            sizes_that_fit(janus, sizes, row, fixed, "picture"),
            REMEMBERED,
        )
        self.places = self._pool.places
        self._drawings: dict[int, _Drawing] = {}
        self._to_show: collections.deque[int] = collections.deque()

    def takes(self, job: Job) -> bool:
        return isinstance(job, DrawJob)

    def prepare(self, job: DrawJob) -> Prepared:
        """See `Worker.prepare`."""
        model, own = self._janus, self._janus.processor.config
        ids = drawing.prompt_ids(model, job.prompt)
        if len(ids) > self._longest:
            raise UserError(
                f"the prompt is too long: {len(ids)} tokens with its chat template, "
                f"the limit of this server is {self._longest}"
            )
        sampling, static = make_sampling_params(
            model.config.vq.codebook_size,
            own.cfg_weight if job.cfg_weight is None else job.cfg_weight,
            own.temperature if job.temperature is None else job.temperature,
            job.top_k,
            job.top_p,
        )
        n = checks.whole("n, the number of pictures,", job.n, least=1)
        seed = checks.seed_number(job.seed)
        previews = checks.whole("previews", job.previews, least=0)
        work = Drawn(ids, seed, sampling, static.filtered, min(previews, self._total - 1))
        return Prepared(n, len(ids), work)

    @property
    def intact(self) -> bool:
        return self._pool.intact

    def start(self, place: int, row: Row) -> None:
        """See `Worker.start`."""
        work: Drawn = row.work
        seed, prompt = work.seed, prompt_number(work.ids)
        start = (work.ids, seed, prompt, row.index, work.sampling, work.filtered, self._total)
        self._pool.start(place, Start(*start), lambda call: self._prefill(call, work.ids))
        self._drawings[place] = _Drawing(row, self._total)

    def step(self) -> list[Output]:
        """See `Worker.step`: shows a picture that is due, or draws a block of codes."""
        if not self._to_show:
            most = min(one.until_shown for one in self._drawings.values())
            for place, new in self._pool.advance(most).items():
                if self._drawings[place].add(new):
                    self._to_show.append(place)
        return self._show(self._to_show.popleft()) if self._to_show else []

    def stop(self, place: int) -> None:
        """See `Worker.stop`."""
        self._pool.stop(place)
        self._drawings.pop(place, None)
        if place in self._to_show:
            self._to_show.remove(place)

    def reset(self) -> None:
        """See `Worker.reset`."""
        self._pool.reset()
        self._drawings.clear()
        self._to_show.clear()

    def allocate(self) -> None:
        """Takes the memory of its rows."""
        self._pool.allocate()

    def list_programs(self, found: ProgramList) -> None:
        """Adds all that it can need."""
        prompts = [self._prefill(found, [0, 0], length) for length in self._lengths]
        self._pool.list_programs(found, prompts)
        self._pixels(found, np.zeros((1, self._total), np.int32))

    def _prefill(self, call: Call, ids: list[int], length: int | None = None) -> Any:
        """Of the conditional and the unconditional prompt."""
        pad = self._janus.processor.tokenizer.pad_id
        length = length or next(one for one in self._lengths if one >= len(ids))
        array = np.full((2, length), pad, np.int32)
        array[:, : len(ids) - 1] = [ids[:-1], unconditional_ids(ids, pad)[:-1]]
        return call(self._engine.prefill, self._janus.weights, array)

    def _show(self, place: int) -> list[Output]:
        """What is said of a row. A picture is decoded alone, so that it is rounded equally in every batch."""
        one, total = self._drawings[place], self._total
        (pixels,) = to_host(self._pixels(execute, one.codes[None]))
        if one.done == total:
            return [(place, Picture(one.row.index, pixels)), (place, RowDone("stop", total))]
        shown = hide_undrawn(pixels[None], one.done, total, WHITE)[0]
        return [(place, Preview(one.row.index, shown, one.done, total))]

    def _pixels(self, call: Call, codes: np.ndarray) -> Any:
        return call(self._janus.image_engine.pixels, self._janus.weights, codes)
