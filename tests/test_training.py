"""Losses, optimizer, and the helpers of stage 0, against plain re-computations."""

import functools
import json
import math

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummies_data import TOKENIZER, DummySource

from janus_jax.config import JANUS_TINY
from janus_jax.data import PackedShape, SequenceEncoder, pack
from janus_jax.errors import RunError
from janus_jax.models import JanusModel, init_params
from janus_jax.processing import Processor, ProcessorConfig
from janus_jax.training import (
    MetricsLog,
    Stage,
    learning_rate,
    make_optimizer,
)
from janus_jax.training.metrics import check_finite
from janus_jax.training.objectives.codebook import (
    kmeans_init,
    merge_duplicates,
    reset_dead_codes,
    update_usage,
)
from janus_jax.training.objectives.janus import janus_loss
from janus_jax.training.objectives.vq import vq_loss

pytestmark = pytest.mark.heavy

CONFIG = JANUS_TINY.replace(
    siglip=JANUS_TINY.siglip.replace(width=32, layers=1, heads=2),
    vq=JANUS_TINY.vq.replace(codebook_size=64, z_channels=16, ch=16, norm_groups=4),
    decoder=JANUS_TINY.decoder.replace(
        width=32, ffw=64, layers=1, heads=2, kv_heads=2, head_dim=16
    ),
)
MODEL = JanusModel(CONFIG)
PROCESSOR = Processor(ProcessorConfig.from_model(CONFIG), TOKENIZER)
ROW = PackedShape(tokens=160, targets=96, und_images=4, gen_images=3)
ROWS = 6
UND, TEXT, GEN = "und", "text", "gen"


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def params():
    """Bold random numbers, so that no two positions predict alike."""
    shapes = jax.eval_shape(lambda key: init_params(MODEL, key), jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        norm = path[-1].key == "scale"
        return norm + 0.3 * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def sequences():
    """(kind, features): two to understand, plain text, chat, two to draw (one without its prompt)."""

    def features(task, index, condition_dropout=0.0, **options):
        encode = SequenceEncoder(PROCESSOR, condition_dropout=condition_dropout)
        return encode(DummySource(task, seed=1, **options)[index], np.random.default_rng(0))

    return [
        (UND, features("und", 0, turns=1)),
        (GEN, features("gen", 0)),
        (TEXT, features("text", 2, chat=False)),
        (UND, features("und", 4, turns=1)),
        (TEXT, features("text", 3, chat=True)),
        (GEN, features("gen", 5, condition_dropout=1.0)),
    ]


def packed_rows(sequences, rows):
    """One batch of ROWS rows: the sequences packed into `rows` of them, the others empty."""
    dataset = grain.MapDataset.source(sequences).to_iter_dataset()
    (batch,) = list(pack(dataset, ROW, rows))
    empty = lambda x: np.zeros((ROWS - rows, *x.shape[1:]), x.dtype)
    return {k: np.concatenate([v, empty(v)]) for k, v in batch.items()}


def one_a_row(sequences):
    batches = [packed_rows([s], 1) for s in sequences]
    first = {k: np.concatenate([b[k][:1] for b in batches]) for k in batches[0]}
    fill = packed_rows(sequences[:1], 1)
    return {k: np.concatenate([v, fill[k][1 : ROWS - len(v) + 1]]) for k, v in first.items()}


@jax.jit
def evaluate(params, batch):
    """(metrics, gradients, metrics with "sequence" reduction)."""
    loss = lambda p: janus_loss(MODEL, p, batch)
    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return metrics, grads, janus_loss(MODEL, params, batch, "sequence")[1]


def close(a, b, rtol=1e-4):
    """Equal up to rounding, by the size of the whole array."""
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(np.abs(b).max(), 1e-3))


# The loss of packed rows


def test_rows_without_room_for_pictures_have_the_loss_of_rows_with_blank_ones(params, sequences):
    batch = packed_rows([f for kind, f in sequences if kind == TEXT], 1)
    bare = batch | {k: v[:, :0] for k, v in batch.items() if k[:4] in ("und_", "gen_")}
    assert bare["und_images"].shape[1] == bare["gen_images"].shape[1] == 0
    wanted, grads, by_sequence = evaluate(params, batch)
    found, bare_grads, bare_by_sequence = evaluate(params, bare)
    for name, value in wanted.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5), name
        assert float(bare_by_sequence[name]) == pytest.approx(float(by_sequence[name]), rel=1e-5)
    jax.tree.map(close, bare_grads, grads)


def test_packing_changes_neither_loss_nor_gradients(params, sequences):
    features = [f for _, f in sequences]
    packed, loose = packed_rows(features, 2), one_a_row(features)
    assert packed["segment_ids"].max(1).tolist() != [1] * ROWS
    metrics, grads, by_sequence = evaluate(params, packed)
    wanted, wanted_grads, wanted_by_sequence = evaluate(params, loose)
    for name, value in wanted.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5), name
        value = float(wanted_by_sequence[name])
        assert float(by_sequence[name]) == pytest.approx(value, rel=1e-5), name
    for path, grad in jax.tree_util.tree_leaves_with_path(wanted_grads):
        found = functools.reduce(lambda tree, key: tree[key.key], path, grads)
        close(found, grad)
    moved = {k for k, tree in grads.items() if any(np.any(g) for g in jax.tree.leaves(tree))}
    assert moved == set(grads) - {"vq"}  # the tokenizer is only looked through


@jax.jit
def embeddings(params, ids, und_image, gen_image):
    """Of ids, of a picture to understand, of a picture's codes; and the codes."""
    run = functools.partial(MODEL.apply, {"params": params})
    pixels = lambda image: (image.astype(jnp.float32) / 127.5 - 1)[None]
    codes = run(pixels(gen_image), method="encode_codes")[0]
    return (
        run(ids, method="embed_text"),
        run(pixels(und_image), method="embed_images")[0],
        run(codes, method="embed_codes"),
        codes,
    )


@jax.jit
def log_probabilities(params, embeds):
    """Of text and of image codes, at each position of one sequence [T, D]."""
    run = functools.partial(MODEL.apply, {"params": params})
    length = len(embeds)
    mask = jnp.tril(jnp.ones((1, length, length), bool))
    hidden, _ = run(embeds[None], jnp.arange(length)[None], mask, method="decode")
    both = (run(hidden[0], method=name) for name in ("text_logits", "image_logits"))
    return [jax.nn.log_softmax(logits) for logits in both]


def cross_entropies(params, kind, features):
    """(text losses, code losses) of one sequence, laid out by hand from its ids and pictures."""
    tok, ids = TOKENIZER, features["tokens"].tolist()
    first = lambda images: images[0] if len(images) else np.zeros((48, 48, 3), np.uint8)
    padded = np.pad(features["tokens"], (0, 160 - len(ids)))
    pictures = (first(features[name]) for name in ("und_images", "gen_images"))
    text, image, drawn, codes = map(np.array, embeddings(params, padded, *pictures))
    boi = ids.index(tok.boi_id) if kind != TEXT else None
    if kind == UND:
        text[boi + 1 : boi + 10] = image
    if kind == GEN:
        assert len(ids) == boi + 36 and len(codes) == 36
        text[boi + 1 : boi + 36] = drawn[:35]
    of_text, of_codes = map(np.asarray, log_probabilities(params, text))
    if kind == GEN:
        # Code 0 from <begin_of_image>, code i + 1 from the slot of code i, all 36 of them.
        return [], [-of_codes[boi + i, code] for i, code in enumerate(codes)]
    start = 1
    if tok.token_id("<|Assistant|>") in ids:  # the prompt is given, not learned
        start = ids.index(tok.token_id("<|Assistant|>")) + 2
    return [-of_text[i - 1, ids[i]] for i in range(start, len(ids))], []


def test_the_loss_by_hand(params, sequences):
    losses = [(kind, cross_entropies(params, kind, f)) for kind, f in sequences]
    by_task = {
        k: [x for kind, (a, b) in losses if kind == k for x in (*a, *b)] for k in (UND, TEXT)
    }
    by_task[GEN] = [x for _, (_, codes) in losses for x in codes]
    assert len(by_task[GEN]) == 2 * 36
    every = [*by_task[UND], *by_task[TEXT], *by_task[GEN]]
    assert np.std(by_task[GEN]) > 0.3 and np.std(by_task[TEXT]) > 0.3  # a shift would show

    packed = packed_rows([f for _, f in sequences], 2)
    metrics, _, by_sequence = evaluate(params, packed)
    for kind, values in by_task.items():
        assert float(metrics[f"loss_{kind}"]) == pytest.approx(np.mean(values), rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(np.mean(every), rel=1e-5)
    assert float(metrics["tokens"]) == sum(len(f["tokens"]) for _, f in sequences)

    wanted = np.mean([np.mean([*text, *codes]) for _, (text, codes) in losses])
    assert float(by_sequence["loss"]) == pytest.approx(wanted, rel=1e-5)
    assert abs(wanted - np.mean(every)) > 1e-3  # the two differ here


def test_all_codes_are_learned_code_0_from_begin_of_image(params, sequences):
    gen = sequences[1][1]
    _, grads, _ = evaluate(params, one_a_row([gen]))
    table = np.asarray(grads["decoder"]["embed"]["embedding"])
    boi = int(gen["gen_starts"][0])
    assert gen["tokens"][boi] == TOKENIZER.boi_id and np.abs(table[TOKENIZER.boi_id]).max() > 1e-6
    # The gradient of the image head's bias is the mean over the 36 codes of (probability - one hot).
    ids = np.pad(gen["tokens"], (0, 160 - len(gen["tokens"])))
    image = gen["gen_images"][0]
    text, _, drawn, codes = map(np.array, embeddings(params, ids, image, image))
    text[boi + 1 : boi + 36] = drawn[:35]
    probability = np.exp(log_probabilities(params, text)[1])[boi : boi + 36]
    bias = (probability - np.eye(64)[codes]) / 36
    close(grads["image_head"]["head"]["bias"], bias.sum(0))
    # Without code 0, or without the last one, it would be another.
    for part in (bias[1:], bias[:-1]):
        assert np.abs(part.sum(0) - bias.sum(0)).max() > 0.01


def test_a_batch_without_a_task_or_without_anything_is_finite(params, sequences):
    text = one_a_row([sequences[2][1]])
    metrics, _, _ = evaluate(params, text)
    assert float(metrics["loss_gen"]) == float(metrics["loss_und"]) == 0
    assert float(metrics["loss"]) == pytest.approx(float(metrics["loss_text"]))
    nothing = {k: np.zeros_like(v) for k, v in text.items()}
    metrics, grads, by_sequence = evaluate(params, nothing)
    assert float(metrics["loss"]) == float(metrics["tokens"]) == float(by_sequence["loss"]) == 0
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))


# The optimizer


def stage(objective="janus", **fields):
    values = dict(
        trainable=("decoder",), steps=10, learning_rate=1e-3, warmup_steps=0, batch_size=4
    )
    ratio = (1.0, 1.0, 1.0) if objective == "janus" else (0, 0, 0)
    return Stage("test", objective, **{**values, "ratio": ratio, **fields})


@pytest.mark.parametrize("warmup", [0, 1, 2, 600])
def test_the_rate_warms_up_linearly_and_stays(warmup):
    rate = learning_rate(stage(warmup_steps=warmup))
    for step in (0, 1, warmup // 2, warmup - 1, warmup, warmup + 1, 100_000):
        if step >= 0:
            wanted = 1e-3 * min(1.0, (step + 1) / max(warmup, 1))
            assert float(rate(step)) == pytest.approx(wanted, rel=1e-4), step


def test_the_optimizer_is_clipped_adamw_without_decay():
    optimizer = make_optimizer(stage(learning_rate=0.1, warmup_steps=2))
    params = {"a": jnp.array([3.0, -4.0]), "b": jnp.array(7.0)}
    state = optimizer.init(params)
    value = np.array([3.0, -4.0, 7.0])
    first, second = np.zeros(3), np.zeros(3)
    for step, grad in enumerate(([30.0, -40.0, 0.0], [0.3, 0.1, -0.2], [5.0, 0.0, 12.0])):
        grad = np.array(grad)
        updates, state = optimizer.update(
            {"a": jnp.array(grad[:2]), "b": jnp.array(grad[2])}, state, params
        )
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        norm = np.linalg.norm(grad)  # of all groups together
        grad = grad / max(norm, 1.0)
        first = 0.9 * first + 0.1 * grad
        second = 0.95 * second + 0.05 * grad**2
        scale = np.sqrt(second / (1 - 0.95 ** (step + 1))) + 1e-8
        rate = 0.1 * min(1.0, (step + 1) / 2)
        value = value - rate * first / (1 - 0.9 ** (step + 1)) / scale
        np.testing.assert_allclose(params["a"], value[:2], rtol=1e-5)
        np.testing.assert_allclose(params["b"], value[2], rtol=1e-5)


# Stage 0: the image tokenizer


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_placed_codes_sit_on_the_outputs():
    rng = np.random.default_rng(0)
    centres = unit(rng.standard_normal((8, 4)))
    z = unit(np.repeat(centres, 50, 0) + 0.02 * rng.standard_normal((400, 4))).astype(np.float32)
    codebook = np.asarray(kmeans_init(jnp.array(z), 16, jax.random.key(0)))
    assert codebook.shape == (16, 4)
    np.testing.assert_allclose(np.linalg.norm(codebook, axis=-1), 1, atol=1e-5)
    fit = (z @ codebook.T).max(-1)
    start = z[np.asarray(jax.random.permutation(jax.random.key(0), 400)[:16])]
    assert fit.mean() >= (z @ start.T).max(-1).mean()  # k-means never makes it worse
    assert fit.mean() > 0.9


def test_codes_that_nothing_uses_move_onto_outputs():
    rng = np.random.default_rng(1)
    codebook = unit(rng.standard_normal((10, 4))).astype(np.float32)
    z = unit(rng.standard_normal((60, 4))).astype(np.float32)
    usage = np.array([3, 0, 2, 0.01, 1, 1, 1, 1, 1, 0.049], np.float32)
    moved, used, count = jax.jit(reset_dead_codes)(codebook, usage, z, jax.random.key(0), 0.05, 2.0)
    idle = [1, 3, 9]
    kept = [i for i in range(10) if i not in idle]
    assert int(count) == 3
    np.testing.assert_array_equal(np.asarray(moved)[kept], codebook[kept])
    np.testing.assert_array_equal(np.asarray(used)[kept], usage[kept])
    np.testing.assert_allclose(np.asarray(used)[idle], 0.5)  # some time to be found
    for code in np.asarray(moved)[idle]:
        assert np.abs(z - code).max(-1).min() < 1e-6


def test_of_two_codes_alike_the_one_used_less_moves():
    codebook = np.array([[1, 0], [0.9999, 0.01], [0, 1], [0, -1], [0, -1]], np.float32)
    usage = np.array([1, 2, 1, 3, 3], np.float32)
    z = np.array([[-1, 0]] * 4, np.float32)
    moved, _, count = jax.jit(reset_dead_codes)(codebook, usage, z, jax.random.key(0), 0.05, 0.985)
    assert int(count) == 2  # 0 for 1; of 3 and 4 only one
    np.testing.assert_array_equal(np.asarray(moved)[[0, 4]], [[-1, 0], [-1, 0]])
    np.testing.assert_array_equal(np.asarray(moved)[1:4], codebook[1:4])


def test_doubles_get_the_vector_that_is_used_most():
    angles = np.array([0, 5, 10, 15, 90, 180, 180])  # degrees; each near its neighbours only
    radians = np.deg2rad(angles)
    codebook = np.stack([np.cos(radians), np.sin(radians)], -1).astype(np.float32)
    usage = np.array([1, 2, 3, 4, 1, 2, 2], np.float32)
    merged = np.asarray(merge_duplicates(codebook, usage, math.cos(math.radians(7))))
    wanted = codebook[[3, 3, 3, 3, 4, 5, 5]]  # a double of a double, too; of equals the first
    np.testing.assert_array_equal(merged, wanted)


def test_usage_is_a_running_average_of_counts():
    update = jax.jit(functools.partial(update_usage, decay=0.9))
    usage = update(jnp.array([0.0, 10.0, 0.0]), jnp.array([0, 0, 2, 0]))
    np.testing.assert_allclose(usage, [0.3, 9.0, 0.1], rtol=1e-6)
    for _ in range(200):
        usage = update(usage, jnp.array([1, 1]))
    np.testing.assert_allclose(usage, [0, 2, 0], atol=1e-5)


def test_the_tokenizer_loss_by_hand(params):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 48, 48, 3)).astype(np.uint8)
    pixels = images.astype(np.float32) / 127.5 - 1

    @jax.jit
    def run(params):
        out = MODEL.apply({"params": params}, pixels, method="vq_forward")
        losses = [vq_loss(MODEL, params, {"image": images}, q, 0.25) for q in (True, False)]
        return out, *losses

    out, (loss, (metrics, aux)), (warm, (warm_metrics, _)) = run(params)
    error = np.asarray(out["reconstruction"]) - pixels
    plain = np.mean(error**2) + 0.2 * np.mean(np.abs(error))
    extra = float(out["codebook_loss"]) + 0.25 * float(out["commitment_loss"])
    assert float(loss) == pytest.approx(plain + extra, rel=1e-5)
    assert float(metrics["loss_reconstruction"]) == pytest.approx(plain, rel=1e-5)
    assert float(metrics["psnr"]) == pytest.approx(10 * math.log10(4 / np.mean(error**2)), rel=1e-4)
    np.testing.assert_allclose(aux["z"], unit(np.asarray(out["z"])).reshape(-1, 8), atol=1e-5)
    np.testing.assert_array_equal(aux["codes"], np.asarray(out["codes"]).reshape(-1))
    # The warm-up trains a plain auto-encoder.
    assert float(warm) == float(warm_metrics["loss_reconstruction"]) != float(loss)


# What a run records


def test_metrics_survive_a_cut_and_a_restart(tmp_path):
    log = MetricsLog(tmp_path)
    log.start_stage("a", 0)
    log.write([{"stage": "a", "step": i, "loss": float(i)} for i in (1, 2)])
    log.start_stage("b", 0)
    log.write([{"stage": "b", "step": i, "loss": float(i)} for i in (1, 2, 3, 4)])
    log.close()
    with log.path.open("a") as file:
        file.write('{"stage": "b", "st')  # killed while writing
    log = MetricsLog(tmp_path)
    assert [r["step"] for r in log.read()] == [1, 2, 1, 2, 3, 4]
    log.start_stage("b", 2)  # the checkpoint is of step 2
    log.write([{"stage": "b", "step": 3, "loss": 0.5}])
    log.close()
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in lines] == [
        *(("a", 1), ("a", 2)),
        *(("b", 1), ("b", 2), ("b", 3)),
    ]
    assert lines[-1]["loss"] == 0.5


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"loss": math.nan, "loss_gen": math.nan, "loss_und": 1.0}, "in generation;"),
        ({"loss": math.nan, "loss_und": math.inf, "loss_text": math.nan}, "understanding, text;"),
        ({"loss": 1.0, "grad_norm": math.inf}, "in grad_norm;"),
    ],
)
def test_what_is_not_finite_is_named(metrics, words):
    with pytest.raises(RunError, match="stage2 step 17") as error:
        check_finite("stage2", 17, metrics)
    assert words in str(error.value)
    check_finite("stage2", 17, {"loss": 1.0, "loss_gen": 0.0, "grad_norm": 1e30})
