"""Looking at data before a run: what is counted is what a run would use, leave out and learn."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from inspected import STAGE, reads, strange_data

from janus_jax.data import Rejected, mixed_sequences, read_example
from janus_jax.data_tools.inspection import inspect
from janus_jax.data_tools.inspection.distribution import Distribution
from janus_jax.data_tools.inspection.mixture import shared_out
from janus_jax.data_tools.inspection.reading import open_reading
from janus_jax.data_tools.inspection.samples import pieces
from janus_jax.data_tools.inspection.scan import (
    MISTAKE,
    Seen,
    SourceCounts,
    _shared_out,
    chosen,
    encoded,
)
from janus_jax.data_tools.inspection.verdict import problems
from janus_jax.errors import UserError
from janus_jax.processing.tokenizer import EOS
from janus_jax.run.stage_data import make_encoder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    strange_data(root)
    return root


@pytest.fixture(scope="module")
def looked(root, tmp_path_factory):
    """(findings, directory with the files) of all records."""
    out = tmp_path_factory.mktemp("look")
    return inspect(reads(root), out, STAGE, count=4, quiet=True, rows=4), out


def test_every_record_is_counted_by_what_becomes_of_it(looked):
    _, out = looked
    numbers = json.loads((out / "inspect.json").read_text())
    drawn = numbers["sources"]["drawn"]
    assert (drawn["records"], drawn["used"], drawn["shortened"]) == (9, 5, 0)
    assert drawn["rejected"] == {
        "picture cannot be read": 1,
        "picture is missing": 1,
        "empty text": 1,
        "path leaves image_root": 1,
    }
    assert (drawn["widths"]["min"], drawn["widths"]["max"]) == (70, 100)
    assert (drawn["heights"]["min"], drawn["heights"]["max"]) == (40, 70)
    assert (drawn["repeated_texts"], drawn["most_repeated"][0]["times"]) == (2, 3)
    assert numbers["sources"]["facts"]["shortened"] == 1
    assert numbers["sources"]["facts"]["tokens"]["max"] == numbers["row"]["tokens"]
    talk = numbers["sources"]["talk"]
    assert talk["answers"]["count"] == 6  # three records with two answers
    assert (talk["answers"]["min"], talk["answers"]["max"]) == (3, 4)  # words and the end
    assert talk["targets"]["min"] == talk["targets"]["max"] == 7
    assert numbers["unread"] == ["elsewhere"]


def test_what_is_left_out_is_listed_with_its_place(looked):
    found, out = looked
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(line["source"], line["index"]) for line in lines] == [
        ("drawn", i) for i in (3, 4, 5, 6)
    ]
    assert lines[0]["record"].endswith("drawn.jsonl, record 4")
    assert all(line["stage"] == STAGE and line["reason"] for line in lines)
    assert "broken.png" in lines[0]["detail"]
    assert [(p.source, p.code) for p in found.problems] == [("drawn", 1)]


def test_it_is_what_the_encoder_of_the_run_says(root, looked):
    """With real pictures at full size, drawn prompts and all."""
    found, _ = looked
    reading = open_reading(reads(root), STAGE)
    encode = make_encoder(reading.experiment, reading.stage, reading.row)
    rng = np.random.default_rng(0)
    for part, source in zip(reading.parts, found.sources, strict=True):
        examples = [read_example(part.source.examples, i) for i in range(len(part.source.examples))]
        made = [e if isinstance(e, Rejected) else encode(e, rng) for e in examples]
        left_out = Counter(m.reason for m in made if isinstance(m, Rejected))
        assert left_out == source.counts.rejected
        lengths = Counter(len(m["tokens"]) for m in made if not isinstance(m, Rejected))
        assert lengths == source.counts.tokens._counts


def test_what_is_learnt_is_marked_token_by_token(root):
    reading = open_reading(reads(root), STAGE)
    tokenizer = reading.experiment.processor.tokenizer
    for part in reading.parts:
        features = encoded(reading.encoder(), part.source.examples[0]).features
        found = list(pieces(features, tokenizer))
        assert sum(piece.tokens for piece in found) == len(features["tokens"])
        learnt = [piece for piece in found if piece.learnt]
        if part.task == "gen":
            codes = reading.experiment.processor.config.num_codes
            assert [(p.tokens, p.codes) for p in learnt] == [(codes - 1, codes)]
            continue
        assert sum(piece.tokens for piece in learnt) == len(features["target_ids"])
        if part.task == "und":
            words = [piece.text for piece in learnt]
            assert words == ["a cat", EOS, "yes it is", EOS]
            slots = reading.experiment.processor.config.num_image_tokens
            runs = [p.tokens for p in found if p.text == "<image_placeholder>"]
            assert runs == [slots]


def test_the_mixture_is_that_of_the_run(root, looked):
    found, _ = looked
    shares = {s.counts.part.label: s.mixed.per_thousand for s in found.sources}
    # Ratio 2 : 3 : 5, and of drawing 3 : 1.
    assert shares == {"drawn": 375.0, "shards": 125.0, "talk": 200.0, "facts": 300.0}
    reading = found.reading
    sequences = iter(
        mixed_sequences(
            reading.sources, reading.stage.ratio, reading.encoder(small=True, blank=True)
        )
    )
    came: Counter = Counter()
    for _ in range(80):
        features = next(sequences)
        came[int(np.append(features["target_sources"], features["gen_sources"])[0])] += 1
    sequences.close()
    labels = [source.label for source in reading.sources]
    assert {labels[i]: n / 0.08 for i, n in came.items()} == pytest.approx(shares)


def test_how_full_rows_are(root, tmp_path):
    """Sequences of 44 tokens: three fit into 160 tokens, and two of the pictures to draw."""
    (tmp_path / "m.yaml").write_text(
        "sources: [{name: same, task: generation, format: jsonl, path: same.jsonl, image_root: "
        f"{root}/pictures}}]\n"
    )
    line = json.dumps({"image": "1.png", "caption": "a red cat"})
    (tmp_path / "same.jsonl").write_text(f"{line}\n" * 500)
    fields = {"stages__stage2__ratio": (0.0, 0.0, 1.0), "stage_order": ("stage2",)}
    for room, sequences in ((3, 3), (2, 2)):
        config = reads(tmp_path, **fields, data__row__gen_images=room)
        found = inspect(config, tmp_path / "look", quiet=True, count=0, rows=16)
        length = found.sources[0].counts.tokens.quantile(1)
        packing = found.packing
        assert 3 * length <= config.data.row.tokens < 4 * length
        assert packing.rows == 16 and packing.sequences == sequences
        assert packing.fill["tokens"] == pytest.approx(
            sequences * length / config.data.row.tokens, abs=1e-3
        )
        assert packing.fill["gen_images"] == 1 and "und_images" not in packing.fill
        stage = found.reading.stage
        epochs = stage.steps * stage.batch_size * sequences / 500
        assert found.sources[0].mixed.epochs == pytest.approx(epochs)


def test_a_limit_is_spread_over_the_source(root, tmp_path):
    assert list(chosen(10, 4)) == [0, 2, 5, 7]
    assert list(chosen(3, 4)) == [0, 1, 2] == list(chosen(3, 0))
    found = inspect(reads(root), tmp_path, STAGE, limit=3, count=1, quiet=True, rows=4)
    drawn = next(s.counts for s in found.sources if s.counts.part.label == "drawn")
    assert (drawn.records, drawn.read) == (9, 3)
    assert drawn.rejected == {"picture cannot be read": 1, "path leaves image_root": 1}  # 3 and 6
    assert drawn.usable == 3.0  # a third of nine
    numbers = json.loads((tmp_path / "inspect.json").read_text())
    assert numbers["limit"] == 3 and numbers["sources"]["drawn"]["read"] == 3


def test_numbers_are_exact_whatever_their_order():
    values = np.random.default_rng(0).integers(0, 300, 1000)
    found = Distribution(int(v) for v in values)
    exact = np.sort(values)
    assert [found.quantile(q) for q in (0, 0.5, 0.95, 1)] == [
        int(exact[i]) for i in (0, 499, 949, 999)
    ]
    assert found.total == values.sum()
    bars = found.histogram(bars=7)
    assert sum(count for *_, count in bars) == 1000 and len(bars) <= 7
    for low, high, count in bars:
        assert count == ((values >= low) & (values <= high)).sum()
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(bars))
    assert Distribution().summary() == {"count": 0} and Distribution().histogram() == []


@pytest.mark.parametrize(
    ("stage", "message"),
    [("stage9", "no stage 'stage9'"), ("stage0_siglip", "trains on pictures alone")],
)
def test_a_stage_without_sequences_is_one_line_and_writes_nothing(root, tmp_path, stage, message):
    with pytest.raises(UserError, match=message):
        inspect(reads(root), tmp_path / "look", stage, quiet=True)
    assert not (tmp_path / "look").exists()


def test_the_last_stage_of_packed_rows_is_looked_at_by_default(root):
    assert open_reading(reads(root)).stage.name == "stage2"
    config = reads(root, stage_order=("stage0_lm", "stage1", "stage0_siglip"))
    assert open_reading(config).stage.name == "stage1"
    assert config.only_stage == ""  # the caller's stays as it is


def test_what_a_run_stops_at_is_told_from_what_it_leaves_out(root, tmp_path):
    """A sequence that no row holds, and pictures among codes."""
    config = reads(root)
    config.data.too_long = "error"
    found = inspect(config, tmp_path, STAGE, quiet=True, count=0, rows=4)
    texts = {p.source: p.text for p in found.problems}
    assert (
        "1 of the 3 sequences read are longer" in texts["facts"]
        and "too_long=reject" in texts["facts"]
    )
    manifest = (
        (root / "m.yaml").read_text().replace("shards.tar}", "codes.jsonl, stages: [stage2]}")
    )
    other = root / "codes.yaml"
    other.write_text(manifest.replace("webdataset", "codes"))
    (root / "codes.jsonl").write_text('{"prompt": "a", "codes": [1]}\n')
    config = reads(root)
    config.data.manifest = str(other)
    found = inspect(config, tmp_path, STAGE, quiet=True, count=0, rows=4).problems
    assert [(p.source, p.code) for p in found] == [("shards", 2), ("drawn", 1)]
    assert "all have pictures or all have codes" in found[0].text


def test_a_source_with_a_few_records_at_which_a_run_stops(root):
    reading = open_reading(reads(root), STAGE)
    counts = SourceCounts(reading.parts[0], 16)
    for index in range(1000):
        counts.add(Seen(index, tokens=5))
    counts.add(Seen(1000, Rejected(MISTAKE, "one has codes")))
    counts.keep({"reason": MISTAKE, "detail": "one has codes", "record": "record 1000"})
    found = problems(reading, [counts])  # below the share that may be bad
    assert [(p.code, p.text.split(": ", 1)[1]) for p in found] == [
        (1, "a run stops at 1 of the 1001 records read: one has codes")
    ]


def test_records_of_a_block_are_read_together():
    """A Parquet file keeps two row groups: threads that were in more would read each many times."""

    class Blocks(list):
        blocks = np.array([0, 6, 12])

    assert _shared_out(Blocks(range(18)), 4) == (4, 1)
    assert _shared_out(Blocks(range(18)), 64) == (6, 1)
    assert _shared_out(Blocks(range(18)), 1) == (1, 6)
    assert _shared_out(list(range(18)), 64) == (64, 8)


def test_a_source_with_few_epochs_leaves_its_turns_to_the_others(root, tmp_path):
    """Of 1000: the first has room for 100, so the others share 900; then the second for 200."""
    assert shared_out(1000, [1, 1, 2], [np.inf, np.inf, np.inf]) == [250, 250, 500]
    assert shared_out(1000, [1, 1, 2], [100, np.inf, np.inf]) == [100, 300, 600]
    assert shared_out(1000, [1, 1, 2], [100, 200, np.inf]) == [100, 200, 700]
    text = (root / "m.yaml").read_text().replace("weight: 3", "weight: 3, epochs: 2")
    (root / "epochs.yaml").write_text(text)
    config = reads(root)
    config.data.manifest = str(root / "epochs.yaml")
    found = inspect(config, tmp_path, STAGE, quiet=True, count=0, rows=4)
    mixed = {s.counts.part.label: s.mixed for s in found.sources}
    assert mixed["drawn"].epochs == 2 and mixed["drawn"].sequences == 10  # five of nine are good
    assert [label for label, part in mixed.items() if part.used_up] == ["drawn"]
    stage = found.reading.stage
    drawing = stage.steps * stage.batch_size * found.packing.sequences / 2
    assert mixed["shards"].sequences == round(drawing - 10)
