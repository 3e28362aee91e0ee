"""The sampling engine: windows, meshes, int8, previews, memory, and what is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummies_model import (
    CODES,
    CONFIG,
    GUIDED,
    LONG,
    SHORT,
    WORDS,
    draw_codes,
    make_janus,
    random_params,
    score,
    uncached_logits,
)

from janus_jax.config import Policy
from janus_jax.errors import UserError
from janus_jax.inference import ImageEngine, Janus, decoder, kv_cache, make_sampling_params
from janus_jax.inference.batching import bucket, deduplicate_prompts, left_pad
from janus_jax.inference.fused_params import fuse_params, quantize
from janus_jax.inference.generator import Request, picture_keys
from janus_jax.inference.image_engine import Prompts, blocks
from janus_jax.inference.logits import fold_in, sample
from janus_jax.inference.matmul import matmul
from janus_jax.inference.memory import decode_bytes, max_rows_that_fit, picture_bytes
from janus_jax.inference.schedule import decode_segments
from janus_jax.parallel import make_mesh

pytestmark = pytest.mark.heavy

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def make(**options) -> Janus:
    return make_janus(fields=GUIDED, **options)


@pytest.fixture(scope="module")
def janus():
    return make()


class Compilations:
    """Counts what XLA compiles inside of a `with`."""

    def __enter__(self):
        self.names = []
        self._listen = lambda name, seconds, **_: (
            self.names.append(name) if name.endswith("backend_compile_duration") else None
        )
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._listen)


def test_windows_of_any_size_give_the_same_logits(janus):
    one = score(janus.image_engine, janus.weights, janus.processor, CODES)  # a single window
    engine = ImageEngine(CONFIG, Policy(), cache_bucket=4)
    assert len(blocks(16, 4)) == 4
    many = score(engine, janus.weights, janus.processor, CODES)
    np.testing.assert_allclose(many, one, atol=2e-5 * np.abs(one).max())
    assert one.shape == (2, 16, 40)


def test_blocks_cover_every_code_once_in_windows_that_only_grow():
    for total, every, window in (
        (576, 72, 128),
        (576, 1, 128),
        (576, 1000, 64),
        (16, 5, 4),
        (2, 1, 1),
    ):
        plan = decode_segments(30, total, every, window)
        drawn = [code for begin, steps, _ in plan for code in range(begin, begin + steps)]
        assert drawn == list(range(1, total))
        lengths = [length for *_, length in plan]
        assert lengths == sorted(lengths) and lengths[-1] == 30 + total - 1
        assert all(length >= 30 + begin + steps - 1 for begin, steps, length in plan)
        assert set(lengths) <= {30 + end - 1 for _, end in blocks(total, window)}


@pytest.mark.parametrize("settings", [dict(temperature=0), dict(seed=3), dict(top_k=9, top_p=0.8)])
def test_a_picture_is_the_same_in_batches_of_1_3_and_16(janus, settings):
    alone = janus.generate_arrays(SHORT, **settings)
    three = janus.generate_arrays([LONG, "a dog", SHORT], **settings)
    many = janus.generate_arrays([LONG, SHORT], n=8, **settings)
    np.testing.assert_array_equal(three[2], alone[0])
    np.testing.assert_array_equal(many[8], alone[0])
    np.testing.assert_array_equal(many[0], three[0])


@pytest.mark.parametrize(
    "settings",
    [
        dict(cfg_weight=2.0),
        dict(cfg_weight=1.0, temperature=0.7),
        dict(cfg_weight=3.0, temperature=1.3, top_k=5),
        dict(cfg_weight=0.0, top_k=12, top_p=0.6),
    ],
)
def test_seeded_codes_equal_uncached_decoding_step_by_step(janus, settings):
    sampling, static = make_sampling_params(CONFIG.vq.codebook_size, **settings)
    drawn = draw_codes(janus, [LONG, SHORT], seed=7, **settings)
    for prompt, codes in zip((LONG, SHORT), drawn, strict=True):
        logits = uncached_logits(janus, prompt)
        request = Request(janus.processor.generation_ids(prompt), 0)
        keys = picture_keys(jax.random.key(7), [request], 1)
        expected = np.zeros(CONFIG.vq.num_codes, np.int32)
        for i in range(len(expected)):
            now = logits(expected[:-1], settings["cfg_weight"])[i]
            expected[i] = sample(now[None], fold_in(keys, i), sampling, static)[0]
        np.testing.assert_array_equal(codes, expected)


@pytest.mark.multidevice
@pytest.mark.parametrize(
    "sizes",
    [
        dict(data=2, tensor=2),
        dict(data=4, tensor=2),
        pytest.param(dict(data=8), marks=pytest.mark.slow),  # cuts rows alone, as the others do too
    ],
)
def test_a_picture_is_the_same_on_any_mesh(janus, sizes):
    sharded = make(mesh=make_mesh(**sizes))
    qkv = sharded.weights["layers"][0]["qkv"]
    heads = {shard.data.shape[0] for shard in qkv.addressable_shards}
    assert heads == {CONFIG.decoder.kv_heads // sizes.get("tensor", 1)}
    for settings in (dict(temperature=0), dict(seed=5)):
        alone = janus.generate_arrays([SHORT, LONG, "a dog"], **settings)
        np.testing.assert_array_equal(
            alone, sharded.generate_arrays([SHORT, LONG, "a dog"], **settings)
        )
    question = "is the cat red?"
    assert sharded.answer(PICTURES[0], question, 8) == janus.answer(PICTURES[0], question, 8)


@pytest.mark.multidevice
def test_a_mesh_that_cuts_heads_is_refused():
    with pytest.raises(UserError, match="tensor=4 does not divide kv_heads=2"):
        make(mesh=make_mesh(tensor=4))


def test_previews_grow_into_the_picture(janus):
    seen = []
    grown = janus.generate_arrays(
        [SHORT, LONG],
        seed=1,
        preview=lambda p: seen.append((p.first, p.count, p.done, p.pixels())),
        preview_every=5,
    )
    np.testing.assert_array_equal(grown, janus.generate_arrays([SHORT, LONG], seed=1))
    assert [done for _, _, done, _ in seen] == [1, 5, 10, 15, 16]
    assert {(first, count) for first, count, *_ in seen} == {(0, 2)}
    half = seen[2][3]  # 10 of 16 codes in a grid of 4 x 4, each 4 x 4 pixels
    assert (half[:, 12:] == 127).all() and (half[:, 8:12, 8:] == 127).all()
    assert (half[:, :8] != 127).any() and (half[:, 8:12, :8] != 127).any()


def test_what_a_preview_raises_stops_the_drawing_and_harms_nothing(janus):
    class Enough(Exception):
        pass

    seen = []

    def stop(preview):
        seen.append(preview.done)
        if preview.done >= 8:
            raise Enough

    with pytest.raises(Enough):
        janus.generate_arrays(SHORT, preview=stop, preview_every=4)
    assert seen == [1, 4, 8]
    np.testing.assert_array_equal(
        janus.generate_arrays(SHORT, preview=lambda p: None), janus.generate_arrays(SHORT)
    )


def test_products_of_every_form_agree():
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.standard_normal((3, 5, 4, 6)), jnp.float32)
    for lead in ((1,), (2,), (2, 3, 1), (2, 16)):
        x = jnp.asarray(rng.standard_normal((*lead, 4, 6)), jnp.float32)
        expected = np.einsum("...kh,abkh->...ab", x, weight)
        np.testing.assert_allclose(matmul(x, weight, axes=2), expected, atol=1e-5)
        low = matmul(x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16), axes=2)
        assert low.dtype == jnp.float32
        np.testing.assert_allclose(low, expected, atol=0.3)
        packed = quantize(weight, 2)
        assert packed.qvalue.dtype == jnp.int8 and packed.scale.shape == (3, 5, 1, 1)
        whole = np.asarray(packed.qvalue, np.float32) * np.asarray(packed.scale)
        assert np.abs(whole - weight).max() <= np.asarray(packed.scale).max() / 2 + 1e-6
        np.testing.assert_allclose(
            matmul(x, packed, axes=2), np.einsum("...kh,abkh->...ab", x, whole), atol=1e-5
        )


def test_an_int8_cache_holds_what_it_is_given():
    rng = np.random.default_rng(0)
    config, rows = CONFIG.decoder, (2, 3)
    full = kv_cache.empty(config, rows, 9, jnp.float32)[0]
    small = kv_cache.empty(config, rows, 9, "int8")[0]
    for index, T in ((0, 5), (5, 1), (6, 1)):
        k, v = rng.standard_normal((2, *rows, T, config.kv_heads, config.head_dim))
        k, v = jnp.asarray(k, jnp.float32), jnp.asarray(v, jnp.float32)
        full = kv_cache.append(full, k, v, index)
        small = kv_cache.append(small, k, v, index)
    q = jnp.asarray(rng.standard_normal((*rows, 1, 2, 2, 8)), jnp.float32)
    seen = jnp.broadcast_to(jnp.arange(9) < 7, (*rows, 1, 9))
    exact, near = kv_cache.attend(q, full, seen), kv_cache.attend(q, small, seen)
    assert 0 < np.abs(exact - near).max() < 0.02
    assert small["k"].dtype == jnp.int8 and small["k_scale"].shape == (*rows, 2, 9)
    assert kv_cache.bytes_per_slot(config, "int8") * 2 == sum(
        sum(x.nbytes for x in small.values()) / 6 / 9 * 2 for _ in range(config.layers)
    )


def test_a_flat_cache_is_the_same_cache():
    rng = np.random.default_rng(0)
    rows, K = (2, 3), CONFIG.decoder.kv_heads
    for other in ("bfloat16", "int8"):
        cache = kv_cache.empty(CONFIG.decoder, rows, 9, other)
        assert kv_cache.flat(cache) is cache
    axes = kv_cache.empty(CONFIG.decoder, rows, 9, "float32")
    flat = kv_cache.flat(axes)
    assert kv_cache.length(flat) == 9 and flat[0]["k"].shape == (2 * 3 * K, 9, 8)
    axes, flat = kv_cache.grow(axes, 12)[0], kv_cache.grow(flat, 12)[0]
    for index, T in ((0, 5), (5, 1)):
        k, v = jnp.asarray(rng.standard_normal((2, *rows, T, K, 8)), jnp.float32)
        axes, flat = kv_cache.append(axes, k, v, index), kv_cache.append(flat, k, v, index)
    jax.tree.map(np.testing.assert_array_equal, kv_cache.flat((axes,)), (flat,))
    q = jnp.asarray(rng.standard_normal((*rows, 2, K, 2, 8)), jnp.float32)
    seen = jnp.asarray(rng.random((*rows, 2, 12)) < 0.5).at[..., 0].set(True)
    np.testing.assert_allclose(
        kv_cache.attend(q, flat, seen), kv_cache.attend(q, axes, seen), atol=1e-6
    )


@pytest.mark.parametrize("columns", [1, 3])
def test_no_step_copies_the_cache_on_a_cpu(janus, columns):
    engine, processor = janus.image_engine, janus.processor
    prompts, rows = deduplicate_prompts(
        [processor.generation_ids(SHORT)] * columns, columns, True, processor.tokenizer.pad_id
    )
    plan = Prompts(*left_pad(prompts, len(prompts), 0), np.array(rows))
    keys = picture_keys(jax.random.key(0), [Request((), i) for i in range(columns)], columns)
    sampling, static = make_sampling_params(CONFIG.vq.codebook_size, 2.0)
    state, _ = engine.start(janus.weights, plan, keys, sampling, static=static)
    length = plan.ids.shape[1] + 11
    state = engine.grow(state, length=length)
    lowered = engine.advance.lower(
        janus.weights, state, 1, keys, sampling, plan.ids.shape[1], steps=11, static=static
    )
    shape = f"f32[{2 * columns * CONFIG.decoder.kv_heads},{length},{CONFIG.decoder.head_dim}]"
    program = lowered.compile().as_text().splitlines()
    assert any("dynamic-update-slice" in line and shape in line for line in program)
    assert not [line for line in program if " copy(" in line and shape in line]


@pytest.mark.parametrize("parts", [("weights",), ("cache",), ("weights", "cache")])
def test_int8_stays_close_and_is_smaller(janus, parts):
    low = make(int8=parts)
    exact = score(janus.image_engine, janus.weights, janus.processor, CODES)
    near = score(low.image_engine, low.weights, low.processor, CODES)
    share = np.sqrt(np.mean((exact - near) ** 2)) / exact.std()
    assert 0 < share < 0.1
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree["layers"]))
    assert (size(low.weights) < size(janus.weights) / 2) == ("weights" in parts)
    low.generate_arrays([SHORT, LONG])  # the whole way
    assert low.answer(PICTURES[0], "what is it?", 4) is not None
    if "weights" in parts:
        sharded = make(int8=parts, mesh=make_mesh(tensor=2))
        near_too = score(sharded.image_engine, sharded.weights, sharded.processor, CODES)
        np.testing.assert_allclose(near_too, near, atol=1e-3)


def test_tables_in_bfloat16_give_the_rows_that_they_hold(janus):
    params = random_params(CONFIG)
    table = np.asarray(params["decoder"]["embed"]["embedding"]).astype(jnp.bfloat16)
    weights = fuse_params(params, CONFIG, Policy("bfloat16", "bfloat16"))
    assert weights["embed"].dtype == weights["codes"].dtype == jnp.uint16  # nothing for XLA to cast
    ids = jnp.array([[3, 0], [len(table) - 1, len(table) + 5]])  # beyond the table: its last row
    rows = decoder.embed_text(weights, ids)
    assert rows.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rows, table[np.minimum(ids, len(table) - 1)])
    exact = decoder.embed_codes(janus.weights, ids)
    np.testing.assert_allclose(decoder.embed_codes(weights, ids), exact, atol=0.02, rtol=0.02)


def test_bfloat16_stays_close(janus):
    policy = Policy("bfloat16", "bfloat16")
    low = fuse_params(random_params(CONFIG), CONFIG, policy)
    assert {x.dtype for x in jax.tree.leaves(low["layers"])} == {jnp.dtype("bfloat16")}
    exact = score(janus.image_engine, janus.weights, janus.processor, CODES)
    near = score(ImageEngine(CONFIG, policy), low, janus.processor, CODES)
    assert np.sqrt(np.mean((exact - near) ** 2)) / exact.std() < 0.05


def test_little_memory_makes_smaller_batches_of_the_same_pictures(janus):
    batches = []
    one = picture_bytes(CONFIG, 16, True, jnp.float32) + decode_bytes(CONFIG, 1)
    tight = make(memory_limit=5 * one)
    counted = lambda items: (batches.append(len(items)), items)[1]
    few = tight.generate_arrays(SHORT, n=9, seed=2, progress=counted)
    assert batches == [3]  # 4 + 4 + 1
    np.testing.assert_array_equal(few, janus.generate_arrays(SHORT, n=9, seed=2))


def test_rows_are_a_power_of_two_that_fits():
    assert max_rows_that_fit(10, 100, 64, "picture") == 8
    assert max_rows_that_fit(10, 10_000, 64, "picture") == 64
    assert max_rows_that_fit(10, 1_000, 6, "picture") == 6
    with pytest.raises(UserError, match="not enough memory for even one picture"):
        max_rows_that_fit(10, 9, 64, "picture")


def test_after_the_warmup_nothing_compiles(janus):
    fresh = make()
    with Compilations() as warm:
        count = fresh.warmup(pictures=[1, 4], answers=[1], tokens=12, max_new_tokens=24)
    assert len(warm.names) >= count > 4
    with Compilations() as small:  # host-side keys and counters, outside of the programs
        janus.generate_arrays("a dog", n=4, seed=9)
        janus.answer(PICTURES[0], "what is it?", 24)
    programs = lambda: (
        fresh.image_engine.draw._cache_size(),
        fresh.text_engine.block._cache_size(),
        fresh.text_engine.prefill._cache_size(),
    )
    del small
    with Compilations() as later:
        for prompt in (SHORT, "a red dog"):
            fresh.generate_arrays(prompt, seed=1)
            fresh.generate_arrays(prompt, n=4)
        fresh.answer(PICTURES[0], "what is it?", 24)
        fresh.answer(PICTURES[1], "is the cat on the left?", 20)
    assert later.names == [], programs()


def test_warmup_prepares_previews(janus):
    fresh = make()
    fresh.warmup(pictures=[2], answers=[], tokens=4, previews=True, preview_every=6)
    janus.generate_arrays("a dog", n=2, preview=lambda p: p.pixels(), preview_every=6)
    with Compilations() as later:
        fresh.generate_arrays("a dog", n=2, preview=lambda p: None, preview_every=6)
    assert len(later.names) <= 1  # the pixels


def test_mixed_requests_compile_a_bounded_number_of_programs():
    fresh = make()
    rng = np.random.default_rng(1)
    words = WORDS[0].split()

    def request():
        prompt = " ".join(rng.choice(words[:8], int(rng.integers(1, 12))))
        if rng.random() < 0.5:
            fresh.generate_arrays(prompt, n=int(rng.integers(1, 4)), seed=int(rng.integers(9)))
        else:
            fresh.answer(PICTURES[int(rng.integers(3))], prompt, int(rng.integers(1, 20)))

    for _ in range(40):
        request()
    lengths = {bucket(len(fresh.processor.generation_ids("a " * n))) for n in range(1, 12)}
    assert fresh.image_engine.draw._cache_size() <= len(lengths) * len({1, 2, 4})
    questions = {bucket(len(fresh.processor.understanding_ids("a " * n))) for n in range(1, 12)}
    assert fresh.text_engine.prefill._cache_size() <= len(questions)
    rooms = {bucket(n, 64) for n in range(1, 129)}
    assert fresh.text_engine.block._cache_size() <= len(rooms)


def test_buckets_are_few_and_close():
    sizes = {bucket(n) for n in range(1, 4097)}
    assert all(n <= bucket(n) <= max(16, n * 1.25 + 16) for n in range(1, 4097))
    assert len(sizes) < 48


def test_conversations_together_are_those_alone(janus):
    settings = dict(temperature=0.9, seed=4)
    together = janus.conversations(3, **settings)
    alone = [janus.conversation(**settings) for _ in range(3)]
    turns = [
        (["what is it?", "a red dog", "is it green?"], [[PICTURES[0]], [], [PICTURES[1]]], 9),
        (["a cat", "what?", "no."], [[], [PICTURES[2]], []], 5),
    ]
    for messages, images, limit in turns:
        pieces = list(together.ask(messages, images, limit))
        answers = ["".join(parts) for parts in zip(*pieces, strict=True)]
        for i, talk in enumerate(alone):
            assert "".join(talk.ask(messages[i], images[i], limit)) == answers[i]
    assert together.ids == [talk.ids for talk in alone]


BAD = {
    "prompt is an empty list": lambda j: j.generate([]),
    "preview_every must be >= 1": lambda j: j.generate(SHORT, preview=print, preview_every=0),
    "int8 can be 'weights' and 'cache', not": lambda j: make(int8=["keys"]),
    "messages: 1 for 2 conversations": lambda j: j.conversations(2).ask(["what?"]),
    "count, the number of conversations": lambda j: j.conversations(0),
    "max_new_tokens must be >= 1": lambda j: j.conversation().ask("what?", max_new_tokens=0),
    "even one picture": lambda j: make(memory_limit=1000).generate(SHORT),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(janus, message):
    with pytest.raises(ValueError, match=message) as error:
        BAD[message](janus)
    assert isinstance(error.value, UserError) and "\n" not in str(error.value)
