"""What a run looks at while it trains: sample grids, and scores after each stage."""

from __future__ import annotations

import io
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from janus_jax import checkpoints
from janus_jax import emoji as es
from janus_jax.emoji import (
    make_prompts,
    make_questions,
    mini_geneval,
    plain,
    prove_judge,
    question_accuracy,
)
from janus_jax.errors import UserError
from janus_jax.inference import Janus
from janus_jax.parallel import first_only, is_first
from janus_jax.processing import grid, to_float, to_uint8
from janus_jax.run.experiment import Experiment
from janus_jax.run.files import read_json, sound_scores, write_json
from janus_jax.training import Stage, Stopped
from janus_jax.untrusted import is_file, printable

TILE = 144  # pixels of one picture in a grid that people look at
# Guidance is chosen on prompts of this seed, and scored on others.
TUNING_SEED = 1_000_033

Params = dict[str, Any]
StopFn = Callable[[], signal.Signals | None]

# What is written to a run directory and its samples/.
_FILES = (
    r"(config|stages|janus|tokenizer|checksums|scores|questions)\.json|metrics\.jsonl|report\.md"
    r"|report_losses\.png"
)
_SAMPLES = r".+_[0-9]+\.(json|png)"


class Evaluator:
    """Draws and scores with the parameters it is given; keeps what is compiled.

    In a job of several processes all of them draw, and the first one writes. It begins with removing what
    killed runs left half written in the run directory.

    Args:
      experiment: the run's objects.
      run_dir: where samples/ and scores.json go.
      stop: asked before every batch of scoring, in all processes; a signal raises `Stopped`.
    """

    def __init__(self, experiment: Experiment, run_dir: Path, stop: StopFn | None = None):
        self._experiment, self._run_dir, self._stop = experiment, run_dir, stop
        self._asking: dict[str, Any] = {}
        self._janus: Janus | None = None
        if is_first():
            checkpoints.remove_leftovers(run_dir, _FILES)
            checkpoints.remove_leftovers(run_dir / "samples", _SAMPLES)
        model = experiment.model
        self._reconstruct = jax.jit(
            lambda params, x: model.apply({"params": params}, x, method="vq_forward")[
                "reconstruction"
            ]
        )

    def sample(self, stage: Stage, step: int, params: Params) -> None:
        """Writes samples/STAGE_STEP.png with its prompts in a .json next to it."""
        world = self._experiment.world
        if stage.objective == "vq":
            scenes = [p.scene for t in es.TASKS for p in make_prompts(world, t, 4, seed=1)]
            pictures = np.stack([es.render(s, world) for s in scenes])
            both = np.stack([pictures, self.reconstruct(params, pictures)], 1)
            self._write_grid(stage, step, both.reshape(-1, *pictures.shape[1:]), 8, ["true, VQ"])
        elif stage.objective == "janus" and stage.ratio[2] > 0:
            tasks = [t for t in es.TASKS if t in stage.scenes["tasks"]] or list(es.TASKS)
            per_task = 24 // len(tasks)
            prompts = [p.text for t in tasks for p in make_prompts(world, t, per_task, seed=1)]
            pictures = self._with(params).generate_arrays(prompts)
            self._write_grid(stage, step, pictures, 6, prompts)

    def reconstruct(self, params: Params, pictures: np.ndarray) -> np.ndarray:
        """Pictures uint8 [B, h, w, 3] through the image tokenizer."""
        size = 100
        out = []
        for i in range(0, len(pictures), size):
            part = pictures[i : i + size]
            padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
            out.append(to_uint8(self._reconstruct(params, to_float(padded)))[: len(part)])
        return np.concatenate(out)

    def score(self, stage: Stage, params: Params, final: bool, quiet: bool = False) -> None:
        """Scores a stage and adds the result to scores.json under its name.

        The final stage is scored with more pictures, at the guidance that did best on other prompts.
        """
        settings = self._experiment.config.eval
        draws = stage.objective == "janus" and stage.ratio[2] > 0
        scores = first_only(self.read_scores)
        done = {"judge", "mini_geneval"} & scores.get(stage.name, {}).keys()
        if done or not settings.prompts or not (draws or stage.objective == "vq"):
            return
        if not quiet:
            print(f"scoring after {stage.name}", flush=True)
        began = time.perf_counter()
        if self._stop is not None:
            self._asking = {"progress": lambda batches: self._until_asked(stage, batches)}
        entry = scores.setdefault(stage.name, {})
        world = self._experiment.world
        if stage.objective == "vq":
            entry["judge"] = prove_judge(
                world, lambda x: self.reconstruct(params, x), max(settings.prompts, 2)
            )
        else:
            janus = self._with(params)
            count = settings.prompts if final else max(settings.prompts // 2, 2)
            weight = self._experiment.config.processor.cfg_weight
            if final and len(settings.cfg_weights) > 1:
                entry["guidance"] = {
                    str(w): mini_geneval(
                        lambda texts, w=w: janus.generate_arrays(
                            texts, cfg_weight=w, **self._asking
                        ),
                        world,
                        max(settings.prompts // 2, 2),
                        seed=TUNING_SEED,
                    )
                    for w in settings.cfg_weights
                }
                # Strict as well, because more guidance adds what nobody asked for.
                means = {w: scores["mean"] for w, scores in entry["guidance"].items()}
                weight = float(max(means, key=lambda w: means[w]["plain"] + means[w]["strict"]))
            entry["cfg_weight"] = weight
            entry["temperature"] = self._experiment.processor.config.temperature

            def draw(texts):
                return janus.generate_arrays(texts, cfg_weight=weight, **self._asking)

            entry["mini_geneval"] = mini_geneval(draw, world, count)
            if final:
                entry["mini_geneval_held_out"] = mini_geneval(draw, world, count, held_out=True)
            entry["questions"] = self._questions(janus, settings.questions if final else count)
            if final:
                entry["questions_held_out"] = self._questions(janus, settings.questions, True)
                self._show_questions(janus)
            self.sample(stage, stage.steps, params)
        entry["scoring_seconds"] = time.perf_counter() - began
        self._write_scores(scores)

    def record_time(self, stage: str, seconds: float) -> None:
        """Adds a stage's training time, and the process's peak memory, to scores.json."""
        if not is_first():
            return
        scores = self.read_scores()
        entry = scores.setdefault(stage, {})
        entry["train_seconds"] = entry.get("train_seconds", 0.0) + seconds
        entry["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self._write_scores(scores)

    def read_scores(self) -> dict[str, Any]:
        """scores.json, or {} if there is none.

        Raises:
          UserError: it cannot be read, or is damaged.
        """
        path, advice = self._run_dir / "scores.json", "move it away, and stages are scored again"
        if not is_file(path):
            return {}
        scores = read_json(path, advice)
        if wrong := sound_scores(scores)[1]:
            raise UserError(
                f"{path} is damaged, {printable(wrong[0])} in it makes no sense: {advice}"
            )
        return scores

    def forget(self, stages: list[str]) -> None:
        """Drops the scores of stages, so that they are scored again; not the times of their training."""
        keep = ("train_seconds", "peak_memory_gib")
        scores = self.read_scores()
        if any(set(scores.get(name, {})) - set(keep) for name in stages):
            for name in stages:
                scores[name] = {k: v for k, v in scores.get(name, {}).items() if k in keep}
            self._write_scores(scores)

    def _questions(self, janus: Janus, count: int, held_out: bool = False) -> dict[str, Any]:
        answer = lambda pictures, texts: janus.answer_batch(
            list(pictures), list(texts), max_new_tokens=16, **self._asking
        )
        return question_accuracy(answer, self._experiment.world, max(count, 2), held_out)

    def _until_asked(self, stage: Stage, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            if asked := self._stop():
                raise Stopped(stage.name, stage.steps, asked)
            yield batch

    def _show_questions(self, janus: Janus) -> None:
        """Writes questions.json: one question of each kind with its picture, for the report."""
        if is_first():
            (self._run_dir / "samples").mkdir(exist_ok=True)
        shown = []
        for kind in es.QUESTION_KINDS:
            pictures, questions = make_questions(self._experiment.world, kind, 2, seed=1)
            answers = janus.answer_batch(
                list(pictures), [q.text for q in questions], max_new_tokens=16
            )
            for i, (picture, question, answer) in enumerate(
                zip(pictures, questions, answers, strict=True)
            ):
                name = f"samples/question_{kind}_{i}.png"
                tile = Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.NEAREST)
                if is_first():
                    _save_png(tile, self._run_dir / name)
                shown.append(
                    {
                        "image": name,
                        "question": question.text,
                        "answer": answer,
                        "truth": question.answer,
                        "right": plain(answer) == plain(question.answer),
                    }
                )
        if is_first():
            write_json(self._run_dir / "questions.json", shown)

    def _with(self, params: Params) -> Janus:
        params = {k: v for k, v in params.items() if k != "aux"}
        if self._janus is None:
            experiment = self._experiment
            self._janus = Janus(
                experiment.janus_config, params, experiment.processor, experiment.model.policy
            )
        else:
            self._janus = self._janus.with_params(params)
        return self._janus

    def _write_grid(self, stage, step, pictures, columns, prompts) -> None:
        if not is_first():
            return
        directory = self._run_dir / "samples"
        directory.mkdir(exist_ok=True)
        tiles = [Image.fromarray(p) for p in pictures]
        side = max(TILE, tiles[0].width)
        tiles = [t.resize((side, side), Image.Resampling.NEAREST) for t in tiles]
        path = directory / f"{stage.name}_{step:06d}.png"
        _save_png(grid(tiles, columns), path)
        write_json(path.with_suffix(".json"), {"prompts": prompts})

    def _write_scores(self, scores: dict[str, Any]) -> None:
        if is_first():
            write_json(self._run_dir / "scores.json", scores)


def _save_png(picture: Image.Image, path: Path) -> None:
    png = io.BytesIO()
    picture.save(png, format="PNG")
    checkpoints.write_bytes(path, png.getvalue())
