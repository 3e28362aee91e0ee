"""Prepared data trains as the original does: the same words, pixels and codes; what is bad is listed."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from dummies_model import CONFIG, make_processor, random_params
from prepare_files import content, make_sources, noise, save_tiny

from janus_jax.cli import data_prepare
from janus_jax.config import Policy
from janus_jax.configs import janus_tiny
from janus_jax.data import Generation, SequenceEncoder
from janus_jax.data.formats import FileSource
from janus_jax.data.manifest import read_manifest
from janus_jax.data_tools.preparation import Options, prepare
from janus_jax.data_tools.preparation.image_codes import PictureCodes
from janus_jax.errors import UserError
from janus_jax.models import JanusModel
from janus_jax.run.codes_check import check_codes
from janus_jax.run.manifest_config import with_manifest
from janus_jax.training import SourceSpec, Stage

pytest.importorskip("array_record")
SEEN = pytest.mark.parametrize("task", ["drawn", "seen", "facts"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def run(tmp_path, model):
    """Prepares a manifest into tmp_path/out; returns that."""

    def run(manifest, **changes):
        out = changes.pop("out", tmp_path / "out")
        fields = dict(batch=2, shard_records=3, threads=2, quiet=True) | changes
        prepare(Options(manifest, str(model), out, **fields))
        return out

    return run


@pytest.fixture(scope="module")
def both(model, tmp_path_factory):
    """(the original manifest, that of pictures, that of codes)."""
    place = tmp_path_factory.mktemp("data")
    manifest, found = make_sources(place), []
    for name, codes in (("pixels", False), ("codes", None)):
        fields = dict(codes=codes, batch=2, shard_records=3, threads=2, quiet=True)
        prepare(Options(manifest, str(model), place / name, **fields))
        found.append(place / name / "manifest.yaml")
    return manifest, *found


def sources(manifest):
    return {s.name: FileSource(s.task, **s.options) for s in read_manifest(manifest)}


def arrays(source, **options):
    encode = SequenceEncoder(make_processor(), condition_dropout=0, **options)
    return [encode(source[i]) for i in range(len(source))]


def gray(pixels):
    """Whether a picture has rows of padding."""
    return bool((pixels[0] == 127).all() or (pixels[:, 0] == 127).all())


@SEEN
def test_pictures_train_as_those_of_the_original_files(both, task):
    before, after = (arrays(sources(manifest)[task]) for manifest in both[:2])
    assert len(before) == len(after) == (2 if task == "facts" else 7)
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], strict=True)
    if task == "seen":  # or the padding was not tried
        assert sum(gray(f["und_images"][0]) for f in before[:-1]) >= 4


def test_codes_are_those_that_the_step_computes(both):
    pixels = arrays(sources(both[0])["drawn"])
    codes = arrays(sources(both[2])["drawn"], codes=True)
    # As in a step: rows of some pictures, inside of the whole model.
    images = np.stack([f["gen_images"][0] for f in pixels])[[0, 1, 2, 3, 4, 5, 6, 0]]
    batch = {"gen_images": images.reshape(4, 2, *images.shape[1:])}
    jax_model = JanusModel(CONFIG, Policy())
    step = jax.jit(lambda p, b: jax_model.apply({"params": p}, b, method="target_codes"))
    wanted = np.asarray(step(random_params(CONFIG), batch)).reshape(8, -1)[:7]
    assert len(np.unique(wanted)) > 5
    np.testing.assert_array_equal(np.stack([f["gen_codes"][0] for f in codes]), wanted)
    for name in ("tokens", "token_types", "gen_starts"):
        for one, other in zip(pixels, codes, strict=True):
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.multidevice
def test_codes_do_not_depend_on_the_number_of_devices():
    params = random_params(CONFIG)["vq"]
    pictures = [noise(i, 16, 16) for i in range(5)]
    one, three = (PictureCodes(CONFIG.vq, params, 2, jax.devices()[:count]) for count in (1, 3))
    assert (one.batch, three.batch) == (2, 6)
    alone = [np.asarray(one(pictures[i : i + 2])) for i in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(alone)[:5], np.asarray(three(pictures))[:5])


def test_the_manifest_is_that_of_the_prepared_sources(both):
    made = yaml.safe_load(both[1].read_text())["sources"]
    assert [entry["path"] for entry in made] == ["drawn", "seen", "facts"]
    for one, other in zip(read_manifest(both[0]), read_manifest(both[1]), strict=True):
        assert (one.name, one.task, one.weight, one.stages) == (
            *(other.name, other.task, other.weight, other.stages),
        )
    config = janus_tiny.get_config("smoke")
    config.only_stage, config.data.manifest = "stage2", str(both[1])
    used = with_manifest(config).stages.stage2.sources
    assert {label: entry.name for label, entry in used.items()} == dict.fromkeys(used, "files")
    assert used.drawn.options.format == "prepared"


def test_it_is_known_which_tokenizer_made_the_codes(both):
    read = lambda manifest: json.loads((manifest.parent / "drawn/prepared.json").read_text())
    codes, pixels = read(both[2])["settings"], read(both[1])["settings"]
    assert (codes["pictures"], pixels["pictures"]) == ("codes", "pixels")
    assert len(codes["codes"]["tokenizer"]) == 16 and not pixels["codes"]


def test_codes_that_are_there_already_stay(tmp_path, run):
    write = lambda name, rows: (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    rows = [{"prompt": "a cat", "codes": [i] * 16} for i in (0, 39, 40)]
    write("c.jsonl", rows)
    manifest = tmp_path / "m.yaml"
    entry = dict(name="coded", task="generation", format="codes", path="c.jsonl")
    manifest.write_text(yaml.safe_dump({"sources": [entry]}))
    out = run(manifest, max_rejected=0.5)
    source = sources(out / "manifest.yaml")["coded"]
    assert [source[i].codes.tolist() for i in range(len(source))] == [[0] * 16, [39] * 16]
    (row,) = map(json.loads, (out / "coded/rejected.jsonl").read_text().splitlines())
    assert (row["index"], row["reason"]) == (2, "codes do not fit the model")  # 40 codes: 0 to 39


def test_bad_records_are_left_out_listed_and_counted(tmp_path, run, capsys):
    manifest = make_sources(tmp_path / "data", 8, bad=(3, 4, 5))
    out = run(manifest, only=("drawn",), max_rejected=0.5)
    rows = [json.loads(row) for row in (out / "drawn/rejected.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == [3, 4, 5]
    assert {row["reason"] for row in rows} == {"picture cannot be read"}
    assert rows[0]["source"] == "drawn" and rows[0]["record"].endswith("drawn.jsonl, record 4")
    index = json.loads((out / "drawn/prepared.json").read_text())
    # A shard is a range of the source: the second one has lost all of its records.
    assert [(f["name"][:5], f["records"]) for f in index["files"]] == [("00000", 3), ("00002", 2)]
    assert index["rejected"] == {"picture cannot be read": 3}
    said = capsys.readouterr().out
    assert "drawn: 5 records" in said and "3 left out (3 picture cannot be read)" in said
    assert "not prepared yet: seen, facts" in said
    source = sources(out / "manifest.yaml")["drawn"]
    wanted = [0, 1, 2, 6, 7]
    original = sources(manifest)["drawn"]
    assert [source[i].prompt for i in range(5)] == [original[i].prompt for i in wanted]
    assert all(isinstance(source[i], Generation) for i in range(5))


def test_too_many_bad_ones_are_an_error_and_a_higher_limit_goes_on(tmp_path, run, monkeypatch):
    manifest = make_sources(tmp_path / "data", 8, bad=(6,))
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"source drawn: 1 of the 8 records.*--max_rejected=0\.14"):
        run(manifest, only=("drawn",), max_rejected=0.1)
    before = content(out / "drawn")
    assert "prepared.json" not in before and before["rejected.jsonl"].count(b"\n") == 1
    assert not (out / "manifest.yaml").exists()
    made = []
    monkeypatch.setattr("janus_jax.data_tools.preparation.shards._write_records", made.append)
    run(manifest, only=("drawn",), max_rejected=0.14)
    after = content(out / "drawn")
    assert not made and after.pop("prepared.json") and after == before


def test_it_stops_early_where_it_is_sure_that_it_is_too_much(tmp_path, run):
    manifest = make_sources(tmp_path / "data", 12, bad=(0, 1))
    with pytest.raises(UserError, match="2 of the 3 records"):  # at most 1 of 12 may be
        run(manifest, only=("drawn",), max_rejected=0.1)
    assert [p.name for p in (tmp_path / "out/drawn").glob("*.array_record")] == [
        "00000.array_record"
    ]


def test_a_source_without_a_good_record_is_an_error(tmp_path, run):
    manifest = make_sources(tmp_path / "data", 2, bad=(0, 1))
    with pytest.raises(UserError, match="source drawn: no record can be used"):
        run(manifest, only=("drawn",), max_rejected=1.0)


def test_the_command_takes_its_flags(tmp_path, model, capsys):
    manifest = make_sources(tmp_path / "data")
    flags = [
        "--manifest",
        str(manifest),
        "--checkpoint",
        str(model),
        "--out",
        str(tmp_path / "out"),
    ]
    data_prepare.main([*flags, "--no-codes", "--source", "facts", "drawn", "--limit=1", "--quiet"])
    said = capsys.readouterr().out
    assert "drawn: 1 records, pictures as pixels" in said and "facts: 1 records" in said
    assert {name for name, _ in sources(tmp_path / "out/manifest.yaml").items()} == {
        "drawn",
        "facts",
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out=o"], "required: --manifest, --checkpoint"),
        (["--manifest=m", "--checkpoint=c", "--out="], "--out is empty"),
        (["--manifest=m", "--checkpoint=c", "--out=gs://b/x"], "give a directory"),
        (
            ["--manifest=m", "--checkpoint=c", "--out=o", "--threads=0"],
            "--threads must be at least 1",
        ),
        (
            ["--manifest=m", "--checkpoint=c", "--out=o", "--max_rejected=nan"],
            "a share from 0 to 1",
        ),
        (["--manifest=m", "--checkpoint=c", "--out=o", "--shards=1"], "unrecognized arguments"),
    ],
)
def test_bad_flags_are_found_without_the_data(flags, message):
    with pytest.raises(UserError, match=message):
        data_prepare.parse_flags(flags)


def stage_of(manifest):
    options = next(s.options for s in read_manifest(manifest) if s.task == "gen")
    spec = SourceSpec("files", "gen", options=options, label="drawn")
    return Stage("stage2", "janus", ("decoder",), 1, 1e-4, 0, 1, ratio=(0, 0, 1), sources=(spec,))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_codes_of_another_tokenizer_are_refused(both, which):
    config = SimpleNamespace(init_from="models/mine")
    experiment = SimpleNamespace(config=config, janus_config=CONFIG)
    params = jax.tree.map(np.asarray, random_params(CONFIG))
    stages = [stage_of(both[which])]
    check_codes(experiment, stages, params)
    check_codes(experiment, stages, None)
    # What makes pictures of codes may be another, and so may the rest of the network.
    params["vq"]["decoder"] = jax.tree.map(lambda x: x + 1, params["vq"]["decoder"])
    check_codes(experiment, stages, params | {"decoder": {}})
    params["vq"]["quantize"] = jax.tree.map(lambda x: x + 0.01, params["vq"]["quantize"])
    if which < 2:  # pictures, not codes
        check_codes(experiment, stages, params)
        return
    message = (
        r"sources\.drawn: its codes were made by another image tokenizer than that of models/mine"
    )
    with pytest.raises(UserError, match=message):
        check_codes(experiment, stages, params)
