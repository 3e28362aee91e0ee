"""Rows of different ages in one batch: each draws what it draws alone, by every kind of program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummies_model import GUIDED, LONGER, make_janus

from janus_jax.config import Policy
from janus_jax.inference import gpu_attention
from janus_jax.inference.generator import prompt_number
from janus_jax.inference.logits import make_sampling_params
from janus_jax.inference.slots import FILTERED, GREEDY, PLAIN, Rows, SlotEngine, stacked
from janus_jax.parallel import make_mesh
from janus_jax.processing.processor import unconditional_ids

pytestmark = pytest.mark.heavy
PROMPTS = "a red cat", "a dog on the left of it", "a green car"
CODES = LONGER.vq.num_codes


class Player:
    """A pool of rows that the test moves by hand."""

    def __init__(self, janus, engine, rows=4):
        self.janus, self.engine, self.size = janus, engine, rows
        self.pool = engine.empty(rows=rows)
        self.rows = {}

    def join(self, place, ids, array, seed, number=0, **settings):
        vocab = LONGER.vq.codebook_size if len(array) == 2 else LONGER.decoder.vocab_size
        sampling, static = make_sampling_params(vocab, **settings)
        prompt = self.engine.prefill(self.janus.weights, array)
        self.pool = self.engine.insert(self.pool, prompt, np.int32(place))
        mode = GREEDY if static.greedy else FILTERED if static.filtered else PLAIN
        self.rows[place] = [
            [len(ids) - 1, ids[-1], 0],
            [seed, prompt_number(ids), number],
            sampling,
            mode,
        ]
        drawn = []
        self.rows[place].append(drawn)
        return drawn

    def block(self, steps, rows, length):
        nobody = [[0, 0, 0], [0, 0, 0], make_sampling_params(40, temperature=0)[0], GREEDY, []]
        now = [self.rows.get(place, nobody) for place in range(rows)]
        numbers = np.asarray([row[0] for row in now], np.int32).T
        keys = np.asarray([row[1] for row in now], np.uint32).T
        sampling = stacked([row[2] for row in now])
        state = Rows(*numbers, *keys, sampling, np.int32(max(row[3] for row in now)))
        self.pool, new = self.engine.block(
            self.janus.weights, self.pool, state, np.int32(steps), rows=rows, length=length
        )
        for row, codes in zip(now, np.asarray(new)[:, :steps].tolist(), strict=True):
            row[0][0] += steps
            row[0][1] = codes[-1]
            row[0][2] += steps
            row[4] += codes


def drawing(janus, text, length=32):
    """(ids, int32 [2, T]) of a prompt."""
    ids, pad = janus.processor.generation_ids(text), janus.processor.tokenizer.pad_id
    array = np.full((2, length), pad, np.int32)
    array[:, : len(ids) - 1] = [ids[:-1], unconditional_ids(ids, pad)[:-1]]
    return ids, array


def play_drawings(janus, engine):
    """Codes of three pictures that begin one after the other, and those that they must have."""
    player = Player(janus, engine)
    settings = dict(cfg_weight=2.0, temperature=0.8)
    first = player.join(0, *drawing(janus, PROMPTS[0]), 0, **settings)
    player.block(5, rows=1, length=32)
    second = player.join(1, *drawing(janus, PROMPTS[1]), 1, number=1, **settings)
    player.block(3, rows=2, length=48)
    third = player.join(3, *drawing(janus, PROMPTS[2]), 2, **settings, top_k=5)
    player.block(8, rows=4, length=48)
    player.rows.pop(0)
    again = player.join(0, *drawing(janus, PROMPTS[0]), 3, cfg_weight=1.0, temperature=0.0)
    for _ in range(2):
        player.block(8, rows=4, length=48)
    want = [
        janus.sample(PROMPTS[0], 1, seed=0, **settings).codes[0],
        janus.sample(PROMPTS[1], 2, seed=1, **settings).codes[1],
        janus.sample(PROMPTS[2], 1, seed=2, **settings, top_k=5).codes[0],
        janus.sample(PROMPTS[0], 1, seed=3, cfg_weight=1.0, temperature=0.0).codes[0],
    ]
    return np.asarray([codes[:CODES] for codes in (first, second, third, again)]), want


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"int8": ["cache"]},
        pytest.param({"int8": ["weights"]}, marks=pytest.mark.slow),
    ],
    ids=["float32", "int8-cache", "int8-weights"],
)
def test_pictures_that_begin_at_any_time_are_those_drawn_alone(options):
    if "weights" in options.get("int8", ()):
        pytest.importorskip("qwix")
    janus = make_janus(LONGER, fields=GUIDED, **options)
    found, want = play_drawings(janus, janus.slot_engine(2, True, 46, 8))
    np.testing.assert_array_equal(found, want)


def test_they_are_the_same_by_the_kernel_for_gpus(monkeypatch):
    kernel = functools.partial(gpu_attention.decode_attention, interpret=True)
    monkeypatch.setattr(gpu_attention, "decode_attention", kernel)
    janus = make_janus(LONGER, fields=GUIDED)
    engine = SlotEngine(LONGER.decoder, 2, True, 46, 8, "float32", kernel=True)
    assert engine.reads_filled
    found, want = play_drawings(janus, engine)
    np.testing.assert_array_equal(found, want)


@pytest.mark.multidevice
@pytest.mark.parametrize(
    "axes",
    [
        pytest.param(dict(data=2), marks=pytest.mark.slow),
        pytest.param(dict(tensor=2), marks=pytest.mark.slow),
        dict(data=2, tensor=2),
    ],
    ids=str,
)
def test_they_are_the_same_on_a_mesh(axes):
    mesh = make_mesh(**{"data": 1} | axes, devices=jax.devices()[: 2 * len(axes)])
    on_mesh = make_janus(LONGER, fields=GUIDED, mesh=mesh)
    found, _ = play_drawings(on_mesh, on_mesh.slot_engine(2, True, 46, 8))
    alone = make_janus(LONGER, fields=GUIDED)
    _, want = play_drawings(alone, alone.slot_engine(2, True, 46, 8))
    np.testing.assert_array_equal(found, want)


def test_in_bfloat16_a_row_does_not_depend_on_its_place_and_age():
    janus = make_janus(LONGER, fields=GUIDED, policy=Policy("bfloat16", "bfloat16"))
    engine = SlotEngine(LONGER.decoder, 2, True, 46, 8, "bfloat16")
    drawn = []
    for place, before in ((0, 0), (2, 0), (1, 3)):
        player = Player(janus, engine)
        if before:
            player.join(0, *drawing(janus, PROMPTS[1]), 5, temperature=1.0)
            player.block(before, rows=4, length=48)
        codes = player.join(place, *drawing(janus, PROMPTS[0]), 7, cfg_weight=2.0)
        player.block(8, rows=4, length=48)
        drawn.append(codes)
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_prompt_of_several_rows_is_computed_once():
    janus = make_janus(LONGER, fields=GUIDED)
    engine = janus.slot_engine(2, True, 46, 8)
    player = Player(janus, engine)
    ids, array = drawing(janus, PROMPTS[0])
    rows = [player.join(place, ids, array, 4, place, cfg_weight=2.0) for place in range(3)]
    prompt = engine.prefill(janus.weights, array)
    T = array.shape[1]
    for layer, pool in zip(prompt, player.pool, strict=True):
        for name, x in layer.items():
            for place in range(3):
                np.testing.assert_array_equal(pool[name][place, :, :, :T], x)
    for _ in range(2):
        player.block(8, rows=4, length=48)
    want = janus.sample(PROMPTS[0], 3, seed=4, cfg_weight=2.0, temperature=1.0).codes
    np.testing.assert_array_equal([codes[:CODES] for codes in rows], want)


def test_what_a_row_left_behind_is_not_seen_by_the_next():
    janus = make_janus(LONGER, fields=GUIDED)
    engine = janus.slot_engine(2, True, 46, 8)
    player = Player(janus, engine)
    player.pool = jax.tree.map(lambda x: jnp.full_like(x, 1e9), player.pool)
    player.join(0, *drawing(janus, PROMPTS[1], 32), 5)
    for _ in range(2):
        player.block(8, rows=1, length=48)
    codes = player.join(0, *drawing(janus, PROMPTS[0], 16), 0, **GUIDED)
    for _ in range(2):
        player.block(8, rows=1, length=48)
    np.testing.assert_array_equal(codes, janus.sample(PROMPTS[0], 1, seed=0).codes[0])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_row_that_moves_is_whole_and_leaves_the_others(dtype):
    engine = SlotEngine(LONGER.decoder, 2, True, 20, 4, dtype)
    rng = np.random.default_rng(0)
    before = jax.tree.map(
        lambda x: rng.integers(-99, 99, x.shape).astype(x.dtype), engine.empty(rows=4)
    )
    moved = engine.move(jax.tree.map(jnp.asarray, before), np.int32(3), np.int32(1))
    jax.tree.map(
        lambda old, new: np.testing.assert_array_equal(new, old[[0, 3, 2, 3]]), before, moved
    )
