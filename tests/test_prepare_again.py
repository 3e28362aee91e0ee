"""A preparation that was stopped goes on to the same bytes; another one in its place is refused."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prepare_files import content, make_sources, save_tiny

from janus_jax.data_tools.preparation import Options, place, prepare, shards
from janus_jax.errors import UserError

pytest.importorskip("array_record")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_sources(tmp_path_factory.mktemp("data") / "d", 7, bad=(4,))


@pytest.fixture(scope="module")
def whole(model, manifest, tmp_path_factory):
    """What a preparation of all sources that nobody stopped has made."""
    out = tmp_path_factory.mktemp("whole")
    fields = dict(batch=2, shard_records=3, threads=1, max_rejected=0.5, quiet=True)
    prepare(Options(manifest, str(model), out, **fields))
    return content(out)


@pytest.fixture
def run(tmp_path, model, manifest):
    """Prepares into a directory of tmp_path, which it returns."""

    def run(out="out", **changes):
        fields = dict(batch=2, shard_records=3, threads=2, max_rejected=0.5, quiet=True) | changes
        checkpoint = fields.pop("checkpoint", str(model))
        prepare(Options(fields.pop("manifest", manifest), checkpoint, tmp_path / out, **fields))
        return tmp_path / out

    return run


class Killed(BaseException):
    """As if the process had ended here."""


@pytest.mark.parametrize("moment", [0, 3, 4, 9, 13, 99])
def test_stopped_at_any_write_it_goes_on_to_the_same_bytes(run, whole, monkeypatch, moment):
    writes = 0
    for module in (shards, place):
        for name in {"atomic_write", "write_json"} & vars(module).keys():
            write = getattr(module, name)

            def stopping(path, value, write=write):
                nonlocal writes
                writes += 1
                if writes == moment + 1:
                    if callable(value):  # a part of it is there
                        value(path.with_name(f".{path.name}.{2**22 + 1}.tmp"))
                    raise Killed
                write(path, value)

            monkeypatch.setattr(module, name, stopping)
    try:
        run()
        assert moment == 99 and writes > 13
    except Killed:
        pass
    monkeypatch.undo()
    assert content(run()) == whole  # also where nothing was left to do


def test_what_is_missing_or_cut_is_made_again_and_nothing_else(run, whole, monkeypatch):
    out = run()
    (out / "drawn/00001.array_record").unlink()
    cut = out / "seen/00000.array_record"
    cut.write_bytes(cut.read_bytes()[:1000])
    (out / "facts/shards/00000.json").unlink()
    made, write = [], shards._write_records
    record = lambda place, records: made.append(place.name[1:6]) or write(place, records)
    monkeypatch.setattr(shards, "_write_records", record)
    assert content(run()) == whole
    assert made == ["00001", "00000", "00000"]


def test_threads_change_nothing(run, whole):
    assert content(run(threads=3)) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(batch=4), r"codes\.batch was 2, now 4"),
        (dict(shard_records=4), "shard_records was 3, now 4"),
        (dict(limit=3), "records was 7, now 3"),
        (dict(codes=False), "codes"),
    ],
)
def test_another_preparation_is_refused(run, changes, message):
    before = content(run(only=("drawn",)))
    with pytest.raises(UserError, match=rf"out/drawn is another preparation: .*{message}") as error:
        run(only=("drawn",), **changes)
    assert "\n" not in str(error.value)
    assert content(run(only=("drawn",))) == before


def test_other_files_and_another_tokenizer_are_refused(run, tmp_path, model):
    manifest = make_sources(tmp_path / "mine", 4)
    run(manifest=manifest)
    other = tmp_path / "other"
    text = (tmp_path / "mine/drawn.jsonl").read_text()
    (tmp_path / "mine/drawn.jsonl").write_text(text.replace("a red cat", "a red dog cat"))
    with pytest.raises(UserError, match="out/drawn is another preparation: files was"):
        run(manifest=manifest)
    (tmp_path / "mine/drawn.jsonl").write_text(text)
    from dummies_model import CONFIG, make_processor, random_params

    from janus_jax.checkpoints import save_model

    params = random_params(CONFIG)
    kernel = params["vq"]["quant_conv"]["kernel"]
    vq = params["vq"] | {"quant_conv": params["vq"]["quant_conv"] | {"kernel": kernel * 1.01}}
    processor = make_processor()
    tokenizer = processor.tokenizer.to_json()
    save_model(other, CONFIG, processor.config.to_dict(), tokenizer, params | {"vq": vq})
    with pytest.raises(UserError, match=r"another preparation: codes\.tokenizer was"):
        run(manifest=manifest, checkpoint=str(other))
    run(manifest=manifest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(manifest=Path("no.yaml")), r"no\.yaml: there is no such file"),
        (dict(only=("drown",)), r"no source 'drown' .*Did you mean 'drawn'"),
        (dict(only=("facts",), codes=True), "none of these sources has the task generation"),
        (dict(checkpoint="./nothing"), "nothing"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        run(**changes)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_is_not_touched(run, tmp_path):
    (tmp_path / "out/drawn").mkdir(parents=True)
    (tmp_path / "out/drawn/precious").write_text("x")
    with pytest.raises(UserError, match="holds something else than prepared data"):
        run()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.yaml").write_text("sources: []")
    with pytest.raises(UserError, match=r"manifest\.yaml that no preparation wrote"):
        run("other")
    assert content(tmp_path / "other") == {"manifest.yaml": b"sources: []"}


def test_one_preparation_at_a_time(run, tmp_path):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="in use by another preparation"):
            run()
    run()


def test_without_the_library_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    with pytest.raises(UserError, match=r"pip install \"janus-jax\[array_record\]\""):
        run()


def test_a_full_disk_is_one_line_and_finished_shards_stay(run, whole, tmp_path, monkeypatch):
    from array_record.python import array_record_module

    class Full(array_record_module.ArrayRecordWriter):
        def close(self):
            super().close()
            raise RuntimeError("write() failed: No space left on device; writing")

    write = shards._write_records

    def later_full(place, records):
        if place.name.startswith(".00001"):
            monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Full)
        return write(place, records)

    monkeypatch.setattr(shards, "_write_records", later_full)
    with pytest.raises(UserError, match=r"no space left on the disk of .*out/drawn"):
        run()
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "out/drawn").iterdir()) == (
        ["00000.array_record", "shards", "state.json"]
    )
    assert content(run()) == whole


@pytest.mark.slow
def test_after_twenty_kills_every_byte_is_there(tmp_path, model):
    """SIGKILL some shards after the last one: at random moments, or while a file is being written."""
    manifest = make_sources(tmp_path / "data", 3000, bad=range(7, 3000, 400))
    command = [sys.executable, "-m", "janus_jax.data", "prepare", f"--manifest={manifest}"]
    command += [f"--checkpoint={model}", "--batch=8", "--shard_records=100", "--quiet", "--out"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    start = lambda out: subprocess.Popen(
        [*command, str(tmp_path / out)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    assert start("whole").wait() == 0
    out, rng, inside, finished = tmp_path / "out", random.Random(0), 0, []
    notes = lambda: len(list(out.glob("*/shards/*.json")))
    for kill in range(20):
        process, wanted = start("out"), notes() + rng.randrange(5)
        written = lambda pid=process.pid: list(out.glob(f"*/.*.{pid}.tmp"))
        while process.poll() is None and (notes() < wanted or (kill % 2 and not written())):
            time.sleep(0.0005)
        if kill % 2 == 0:
            time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it had not ended
        inside += bool(written())
        finished.append(notes())
    assert start("out").wait() == 0
    assert inside >= 10
    assert content(out) == content(tmp_path / "whole")
    found = json.loads((out / "drawn/prepared.json").read_text())
    assert found["rejected"] == {"picture cannot be read": 8}
    print(f"20 kills, {inside} while a file was written; shards finished then: {finished}")
