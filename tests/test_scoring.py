"""What a run scores: guidance chosen on other prompts, stopping between batches, reconstructions."""

import json
import signal

import numpy as np
import pytest
from smoke import tiny

from janus_jax import emoji as es
from janus_jax.emoji import make_prompts, make_questions
from janus_jax.emoji.benchmarks import TUNING_SEED
from janus_jax.run import build, training_run
from janus_jax.run.place import run_place
from janus_jax.run.predictors import Predictors
from janus_jax.run.scores import ScoreStore
from janus_jax.run.scoring import Evaluator
from janus_jax.training import Stopped

pytestmark = pytest.mark.heavy


def benchmarks(prompts=6, questions=4, cfg_weights=(1.0, 2.0)):
    return (
        {"name": "emoji/geneval", "prompts": prompts, "cfg_weights": cfg_weights},
        {"name": "emoji/questions", "questions": questions},
        {"name": "emoji/judge", "pictures": prompts},
    )


class Painter:
    """Stands in for the model: draws what is asked, but only at guidance 2."""

    def __init__(self, world):
        self.world = world
        self.asked = []
        seeds = {"seed": 1_000_003}, {"seed": TUNING_SEED}, {"seed": 1}
        self.scenes = {
            p.text: p.scene
            for task in es.SCENE_KINDS
            for options in (*seeds, {"held_out": True})
            for p in make_prompts(world, task, 8, **options)
        }

    def generate_arrays(self, texts, cfg_weight=None, seed=0):
        self.asked.append((cfg_weight, tuple(texts)))
        right = cfg_weight == 2.0
        blank = np.zeros((48, 48, 3), np.uint8)
        pictures = [es.render(self.scenes[t], self.world) if right else blank for t in texts]
        return np.stack(pictures)

    def answer_batch(self, pictures, texts, max_new_tokens):
        return ["yes"] * len(texts)


def test_the_final_score_uses_the_guidance_that_did_best_on_other_prompts(monkeypatch, tmp_path):
    config = tiny(eval__benchmarks=benchmarks(cfg_weights=(1.0, 2.0, 3.0)))
    experiment = build(config)
    painter = Painter(es.World())
    evaluator = Evaluator(experiment, tmp_path)
    monkeypatch.setattr(Predictors, "_model", lambda self, params: painter)
    stage = experiment.stages[3]
    ScoreStore(tmp_path).record_time(stage.name, 2.0)
    evaluator.score(stage, {}, final=True, quiet=True)
    entry = json.loads((tmp_path / "scores.json").read_text())[stage.name]
    assert entry["cfg_weight"] == 2.0 and entry["train_seconds"] == 2.0
    assert entry["temperature"] == config.processor.temperature
    assert {w: g["mean"]["plain"] for w, g in entry["guidance"].items()} == {
        "1.0": 0.0,
        "2.0": 1.0,
        "3.0": 0.0,
    }
    assert entry["mini_geneval"]["mean"] == {"plain": 1.0, "strict": 1.0}
    assert entry["mini_geneval_held_out"]["mean"]["plain"] == 1.0
    assert entry["mini_geneval"]["counting"]["count"] == 6
    # Tuned and scored on different prompts.
    tuned = {t for _, texts in painter.asked[:3] for t in texts}
    assert len(tuned & set(painter.asked[3][1])) < 0.5 * len(tuned)
    _, asked = make_questions(es.World(), "yes_no", 4)
    wanted = np.mean([q.answer == "yes" for q in asked])
    assert entry["questions"]["yes_no"]["accuracy"] == wanted
    assert list((tmp_path / "samples").glob(f"{stage.name}_*.png"))
    # Scored once; nothing else is lost.
    asked = len(painter.asked)
    evaluator.score(stage, {}, final=True, quiet=True)
    assert len(painter.asked) == asked


@pytest.mark.parametrize("after", [0, 2, 5])
def test_scoring_stops_between_two_batches_and_leaves_no_half_scores(after, monkeypatch, tmp_path):
    experiment = build(tiny(eval__benchmarks=benchmarks()))
    painter, asked = Painter(es.World()), []
    draw, answer = painter.generate_arrays, painter.answer_batch
    painter.generate_arrays = lambda texts, cfg_weight, progress: next(
        draw(texts, cfg_weight) for _ in progress([1])
    )
    painter.answer_batch = lambda pictures, texts, max_new_tokens, progress: next(
        answer(pictures, texts, max_new_tokens) for _ in progress([1])
    )

    def stop():
        asked.append(1)
        return signal.SIGTERM if len(asked) > after else None

    evaluator = Evaluator(experiment, tmp_path, stop)
    monkeypatch.setattr(Predictors, "_model", lambda self, params: painter)
    stage = experiment.stages[3]
    with pytest.raises(Stopped, match="stopped by SIGTERM, stage2 step 6 is saved"):
        evaluator.score(stage, {}, final=True, quiet=True)
    assert len(asked) == after + 1 and ScoreStore(tmp_path).read() == {}


def test_stages_that_cannot_draw_are_not_scored(tmp_path):
    experiment = build(tiny(eval__benchmarks=benchmarks()))
    evaluator = Evaluator(experiment, tmp_path)
    for stage in experiment.stages[:2]:
        evaluator.score(stage, {}, final=True, quiet=True)
    assert ScoreStore(tmp_path).read() == {}


def test_reconstructions_come_in_any_number(tmp_path):
    experiment = build(tiny())
    predictors = Predictors(experiment)
    predictors._reconstruct = lambda params, x: x  # any number is cut into equal batches
    pictures = np.random.default_rng(0).integers(0, 255, (103, 48, 48, 3)).astype(np.uint8)
    found = predictors.reconstruct({}, pictures)
    assert found.shape == pictures.shape and np.abs(found.astype(int) - pictures).max() <= 1


def prepare(run_dir, **fields):
    """Opens a run directory with a config, as a run does that trains its stages next."""
    experiment = build(tiny(**fields))
    with run_place(run_dir) as place, place.hold():
        training_run._prepare(place, experiment, list(experiment.stages), ())
    path = run_dir / "scores.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_scores_are_dropped_when_what_is_scored_changes_and_not_with_a_new_version(tmp_path):
    run_dir, listed = tmp_path / "run", ({"name": "emoji/questions", "questions": 3},)
    assert prepare(run_dir, eval__benchmarks=listed) == {}
    scores = {"stage2": {"train_seconds": 1.0, "questions": {"what": {"accuracy": 1.0}}}}
    (run_dir / "scores.json").write_text(json.dumps(scores))
    # A run of a version that named no benchmarks.
    fields = json.loads((run_dir / "config.json").read_text())
    del fields["eval"]["benchmarks"]
    fields["eval"] |= {"prompts": 50, "questions": 50, "cfg_weights": [1.5]}
    (run_dir / "config.json").write_text(json.dumps(fields))
    assert prepare(run_dir, eval__benchmarks=listed) == scores
    assert prepare(run_dir, eval__benchmarks=()) == scores  # nothing is scored: what is there stays
    assert prepare(run_dir, eval__benchmarks=listed)["stage2"] == {"train_seconds": 1.0}
