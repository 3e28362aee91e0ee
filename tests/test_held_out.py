"""Records that are kept from training, and their loss: which they are, and that it is exact."""

import json
import pickle

import jax
import numpy as np
import pytest
from data_files import picture, write
from smoke import tiny

from janus_jax.adapters import merge_lora
from janus_jax.data import HeldOut, Text, WithoutHeldOut, held_out_indices
from janus_jax.data import held_out as held_out_module
from janus_jax.errors import UserError
from janus_jax.models import init_params
from janus_jax.parallel import global_batch, shard_params
from janus_jax.run import batches, build
from janus_jax.run.held_out import HeldOutLoss
from janus_jax.run.stage_data import stage_sources
from janus_jax.training import add_params
from janus_jax.training.objectives.janus import janus_loss


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


# Which records


@pytest.mark.parametrize(
    ("length", "share", "count"),
    [
        (1, 0.5, 0),  # something is left to train on
        (2, 0.001, 1),  # at least one
        (100, 0.02, 2),
        (100, 0.0, 0),
        (3, 1.0, 2),
        (1000, 0.5, 200),  # at most that many
        (10**6, 0.02, 200),
    ],
)
def test_how_many_are_held_out(length, share, count):
    found = held_out_indices(length, share)
    assert len(found) == count and (np.diff(found) > 0).all()
    assert not count or 0 <= found[0] <= found[-1] < length


def test_which_ones_are_held_out_never_changes(monkeypatch):
    # A run that goes on with a newer version must not train on what it is judged by.
    assert held_out_indices(100, 0.1).tolist() == [3, 10, 18, 21, 41, 48, 49, 68, 82, 83]
    assert held_out_indices(12, 0.02).tolist() == [10]
    whole = held_out_indices(5000, 0.03)
    monkeypatch.setattr(held_out_module, "_AT_ONCE", 7)  # however many are looked at at once
    np.testing.assert_array_equal(held_out_indices(5000, 0.03), whole)
    assert len(set(whole // 500)) == 10  # from everywhere


class Numbers:
    """Texts of their own index, read in blocks."""

    def __init__(self, length, blocks=None):
        self.length, self.blocks = length, blocks

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        return Text(text=str(index))

    def describe(self, index):
        return f"line {index + 1}"


def texts(source):
    return [int(source[i].text) for i in range(len(source))]


@pytest.mark.parametrize(("length", "share"), [(1, 0.1), (2, 0.1), (10, 0.3), (57, 0.9)])
def test_a_source_and_what_is_held_out_of_it_are_the_whole(length, share):
    source = Numbers(length)
    kept, held = WithoutHeldOut(source, share), HeldOut(source, share)
    assert texts(held) == held_out_indices(length, share).tolist()
    assert texts(kept) == [i for i in range(length) if i not in set(texts(held))]
    for part in (kept, held):
        assert [part.describe(i) for i in range(len(part))] == [
            f"line {n + 1}" for n in texts(part)
        ]
        with pytest.raises(IndexError):
            part[len(part)]
    assert texts(pickle.loads(pickle.dumps(kept))) == texts(kept)


def test_what_is_read_in_one_piece_still_is():
    blocks = np.array([0, 10, 11, 40, 41])  # some of one record
    source = Numbers(60, blocks)
    kept = WithoutHeldOut(source, 0.5)
    held = set(held_out_indices(60, 0.5).tolist())
    assert kept.blocks[0] == 0 and (np.diff(kept.blocks) > 0).all()
    whole = np.searchsorted(blocks, texts(kept), side="right")
    mine = np.searchsorted(kept.blocks, range(len(kept)), side="right")
    # Two records are in one piece now if and only if they were.
    assert ((np.diff(whole) > 0) == (np.diff(mine) > 0)).all()
    assert {10, 40} & held  # a piece may be gone altogether
    assert WithoutHeldOut(Numbers(60), 0.5).blocks is None


# In a run

WORDS = ["a red cat", "a dog", "two green apples", "a car and a cat", "three blue dogs"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Texts, pictures to answer about and to draw, as pixels and as codes."""
    place = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for i in range(20):
        write(place / f"{i}.png", picture(12 * i))
    shown = [{"image": f"{i}.png", "caption": WORDS[i % 5]} for i in range(20)]
    write(place / "shown.jsonl", shown)
    write(place / "said.jsonl", [{"text": WORDS[i % 5] + " is a dog" * (i % 3)} for i in range(30)])
    codes = [{"caption": WORDS[i % 5], "codes": rng.integers(0, 64, 36).tolist()} for i in range(9)]
    write(place / "codes.jsonl", codes)
    return place


def manifest(place, drawn="codes.jsonl"):
    source = lambda name, task, **more: {"name": name, "task": task, "format": "jsonl", **more}
    form = {"format": "codes"} if "codes" in drawn else {}
    sources = [
        source("said", "text", path="said.jsonl"),
        source("shown", "understanding", path="shown.jsonl", prompt="what is it?"),
        source("shown again", "understanding", path="shown.jsonl", prompt="describe it.")
        | {"name": "again"},
        source("drawn", "generation", path=drawn) | form,
    ]
    return write(place / f"{drawn}.yaml", {"sources": sources})


def experiment(place, drawn="codes.jsonl", held_out=0.25, **fields):
    return build(
        tiny(
            data__manifest=manifest(place, drawn),
            data__held_out=held_out,
            stage_order=("stage2",),
            **fields,
        )
    )


def params_of(made):
    """Random numbers; to compile an initialisation would take longer than all the rest."""
    shapes = jax.eval_shape(lambda k: init_params(made.model, k), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float32(rng.normal(0, 0.2, x.shape)), shapes)


def flat(found):
    return {k: v for k, v in found.items() if k != "sources"} | found["sources"]


def close(one, other, rtol=1e-6):
    assert one.keys() == other.keys()
    np.testing.assert_allclose([*one.values()], [other[name] for name in one], rtol=rtol)


def test_training_never_reads_what_is_held_out(place):
    made = experiment(place)
    (stage,) = made.stages
    held = set(held_out_indices(30, 0.25).tolist())
    assert len(held) == 8
    said = next(s for s in stage_sources(stage, 0) if s.label == "said")
    assert len(said.examples) == 22
    iterator = batches(made, stage)
    for _ in range(12):
        next(iterator)
    totals = iterator.ledger.totals()
    iterator.close()
    assert totals["said"].used > 2 * 22 and not any(t.left_out for t in totals.values())
    places = {said.examples.describe(i) for i in range(22)}
    assert len(places) == 22 and not any(f"line {i + 1}" in places for i in held)


def test_without_it_nothing_is_another_position(place):
    settings = lambda made: batches(made, made.stages[0])._settings["sources"]
    assert all("held_out" not in s for s in settings(experiment(place, held_out=0.0)))
    assert all(s["held_out"] == 0.25 for s in settings(experiment(place)))
    # What is made on the fly has no records to keep.
    assert all(not s.held_out for s in build(tiny(data__held_out=0.5)).stages[1].sources)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_an_impossible_share_is_one_line(value):
    with pytest.raises(UserError, match=r"config\.data\.held_out must be from 0 to 1"):
        build(tiny(data__held_out=value))


@pytest.fixture(scope="module")
def made(place):
    made = experiment(place)
    params = params_of(made)
    loss = HeldOutLoss(made, made.stages[0], rows=2)
    return made, params, loss, loss(params)


def test_the_loss_is_there_by_task_and_source(made):
    experiment, _, loss, found = made
    assert loss.counts == {"said": 8, "shown": 5, "again": 5, "drawn": 2}
    assert set(found) == {"loss", "loss_und", "loss_text", "loss_gen", "sources"}
    assert set(found["sources"]) == set(loss.counts)
    assert found["loss_text"] == found["sources"]["said"]
    low, high = sorted(found["sources"][name] for name in ("shown", "again"))
    assert low < found["loss_und"] < high
    ratio = experiment.stages[0].ratio
    tasks = [found[f"loss_{task}"] for task in ("und", "text", "gen")]
    assert found["loss"] == pytest.approx(np.dot(ratio, tasks) / sum(ratio))


def test_it_is_the_loss_of_training_over_these_sequences(made):
    experiment, params, loss, found = made
    rows = [*loss._packed()]
    batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    counted = np.unique(batch["target_sources"][batch["target_weights"] > 0])
    assert set(counted) == {
        n for n, s in enumerate(experiment.stages[0].sources) if s.task != "gen"
    }
    for number, spec in enumerate(experiment.stages[0].sources):
        only = dict(batch)
        for name, of in (("target_weights", "target_sources"), ("gen_weights", "gen_sources")):
            only[name] = batch[name] * (batch[of] == number)
        wanted, _ = jax.jit(lambda p, b: janus_loss(experiment.model, p, b))(params, only)
        assert found["sources"][spec.label] == pytest.approx(float(wanted), rel=1e-6)


def test_it_is_the_same_again_and_in_batches_of_any_size(made):
    experiment, params, loss, found = made
    assert loss(params) == found
    other = HeldOutLoss(experiment, experiment.stages[0], rows=5)
    assert len([*loss._batches()]) > len([*other._batches()])
    close(flat(other(params)), flat(found))


def test_no_prompt_is_dropped(made, place):
    one = made[2]
    fields = {"stages__stage2__condition_dropout": 1.0}
    other = experiment(place, **fields)
    rows = [[*HeldOutLoss(other, other.stages[0])._packed()], [*one._packed()]]
    for a, b in zip(*rows, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_record_that_cannot_be_used_is_left_out(made, place, tmp_path):
    _, params, _, found = made
    for file in place.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for i in held_out_indices(20, 0.25)[1:]:
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    other = experiment(tmp_path)
    left = HeldOutLoss(other, other.stages[0], rows=2)(params)
    assert left["sources"]["said"] == pytest.approx(found["sources"]["said"], rel=1e-6)
    assert left["sources"]["shown"] != pytest.approx(found["sources"]["shown"], rel=1e-3)
    (tmp_path / f"{held_out_indices(20, 0.25)[0]}.png").write_bytes(b"no picture")
    left = HeldOutLoss(other, other.stages[0], rows=2)(params)
    assert set(left) == {"loss", "loss_text", "loss_gen", "sources"}
    assert set(left["sources"]) == {"said", "drawn"}


def test_where_nothing_is_held_out_there_is_nothing_to_see(place):
    made = experiment(place, held_out=0.0)
    assert HeldOutLoss(made, made.stages[0]).counts == {}


@pytest.mark.slow
def test_an_adapter_gives_the_loss_of_the_sum(made):
    experiment, params, loss, found = made
    stage = experiment.stages[0]
    options = {"lora": dict(rank=2, alpha=4.0)}
    stage = type(stage)(**{**vars(stage), "options": options, "trainable": ("**/lora_*",)})
    added = add_params(experiment.model, stage, params, jax.random.key(1))
    close(flat(loss(added)), flat(found))
    fill = lambda path, x: x + 0.1 if path[-1].key == "lora_b" else x
    added = jax.tree_util.tree_map_with_path(fill, added)
    assert loss(added)["loss"] != pytest.approx(found["loss"], rel=1e-3)
    close(flat(loss(added)), flat(loss(merge_lora(added))), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.multidevice
def test_several_devices_compute_the_same(made, place):
    other = experiment(place, mesh__fsdp=2, mesh__data=2)
    params = shard_params(made[1], other.mesh)
    close(flat(HeldOutLoss(other, other.stages[0], rows=4)(params)), flat(made[3]), rtol=1e-5)


@pytest.mark.slow
def test_codes_of_the_image_tokenizer_are_what_pixels_become(place, tmp_path):
    for file in place.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    pixels = experiment(tmp_path, drawn="shown.jsonl")
    params = params_of(pixels)
    loss = HeldOutLoss(pixels, pixels.stages[0], rows=4)
    found = loss(params)
    assert loss.counts["drawn"] == 5
    coded = [{"caption": WORDS[i % 5], "codes": [0] * 36} for i in range(20)]
    encode = jax.jit(lambda b: pixels.model.apply({"params": params}, b, method="target_codes"))
    held, rows = held_out_indices(20, 0.25), []
    for batch in loss._batches():
        codes = np.asarray(encode(global_batch(batch, pixels.mesh)))
        rows += [*codes[batch["gen_weights"] > 0]]
    for index, codes in zip(held, rows, strict=True):
        coded[index]["codes"] = codes.tolist()
    (tmp_path / "codes.jsonl").write_text("".join(json.dumps(c) + "\n" for c in coded))
    other = experiment(tmp_path)
    close(flat(HeldOutLoss(other, other.stages[0], rows=4)(params)), flat(found), rtol=1e-5)
