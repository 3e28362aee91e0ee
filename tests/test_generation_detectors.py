"""Detectors at the boundary: checked before they are used, resumable, and the proxy out of transformers."""

import importlib
import json
import sys

import numpy as np
import pytest
from dummies_drawing import Painter

from janus_jax.errors import UserError
from janus_jax.evaluation.generation import (
    COLORS,
    PROXY,
    detect,
    draw,
    geneval_classes,
    geneval_prompts,
    judge_pictures,
    load_function,
    read_header,
    sanity_check,
    score_results,
)
from janus_jax.interop.mask2former import cut_out, instances, text_means


class Dots:
    """Finds a cat of the picture's mean colour at the first pixel above 250."""

    name = "dots"

    def __init__(self):
        self.seen = 0

    def __call__(self, picture):
        self.seen += 1
        rows, columns = np.nonzero(picture.max(axis=2) > 250)
        if not len(rows):
            return {}
        x, y = float(columns[0]), float(rows[0])
        return {"bench": [[x, y, x + 4, y + 4, 0.8]]}, lambda name: ["red"]


@pytest.fixture
def drawn(tmp_path):
    prompts = geneval_prompts().spread(6)
    draw(Painter(16), prompts, tmp_path / "out", samples=2)
    return tmp_path / "out"


def test_a_folder_is_judged_and_the_detector_named(drawn, tmp_path):
    seen = []
    out = tmp_path / "detections.jsonl"
    results = judge_pictures(Dots(), drawn, out, progress=lambda *n: seen.append(n))
    assert len(results) == 12 and seen[0] == (0, 12) and seen[-1] == (12, 12)
    header = read_header(out)
    assert header["detector"] == "dots" and header["drawing"]["samples"] == 2
    scores = score_results(results)
    assert scores.tasks["single_object"].share == 1.0  # "a photo of a bench"
    assert scores.incomplete and scores.prompt_count == 6


def test_a_killed_detector_goes_on(drawn, tmp_path):
    out = tmp_path / "detections.jsonl"
    whole = judge_pictures(Dots(), drawn, out)
    lines = out.read_bytes()
    for part in (0.0, 0.1, 0.5, 0.9, 1.0):
        out.write_bytes(lines[: int(len(lines) * part)])
        there = max(out.read_bytes().count(b"\n") - 1, 0)
        detector = Dots()
        again = judge_pictures(detector, drawn, out)
        assert [r.correct for r in again] == [r.correct for r in whole]
        assert detector.seen == 12 - there and out.read_bytes() == lines


def test_detections_of_another_detector_are_refused(drawn, tmp_path):
    judge_pictures(Dots(), drawn, tmp_path / "d.jsonl")
    other = Dots()
    other.name = "other"
    with pytest.raises(UserError, match=r"was made by .*dots.*, not by .*other"):
        judge_pictures(other, drawn, tmp_path / "d.jsonl")


def test_folders_that_are_none_are_told(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        judge_pictures(Dots(), tmp_path / "nothing", tmp_path / "d.jsonl")
    with pytest.raises(UserError, match="has no pictures of GenEval"):
        judge_pictures(Dots(), tmp_path, tmp_path / "d.jsonl")
    (tmp_path / "00000" / "samples").mkdir(parents=True)
    with pytest.raises(UserError, match=r"metadata\.jsonl"):
        judge_pictures(Dots(), tmp_path, tmp_path / "d.jsonl")
    (tmp_path / "00000" / "metadata.jsonl").write_text('{"tag": "x"}')
    with pytest.raises(UserError, match="no conditions of GenEval"):
        judge_pictures(Dots(), tmp_path, tmp_path / "d.jsonl")


def test_an_unreadable_picture_is_named(drawn, tmp_path):
    (drawn / "00000/samples/0000.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"0000\.png"):
        judge_pictures(Dots(), drawn, tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        {"cat": [[1, 2, 3, 4]]},
        {"cat": 3},
        ({"cat": [[0, 0, 1, 1, 0.5]]}, lambda name: ["mauve"]),
    ],
)
def test_a_detector_that_returns_something_else_is_named(found):
    def odd(picture):
        return found

    with pytest.raises(UserError, match=r"the detector .*odd: detections must be"):
        detect(odd, np.zeros((4, 4, 3), np.uint8), ["cat"])


def test_the_sanity_check_passes_sound_detectors():
    class Sound:
        name = "sound"

        def __call__(self, picture):
            return {"cat": [[0, 0, 4, 4, 0.9]]} if picture.max() == 255 else {}

    line = sanity_check(Sound())
    assert line == (
        "detector sound: nothing sure on grey, the same twice, no pictures with known objects given"
    )
    cat = (np.full((8, 8, 3), 255, np.uint8), "cat")
    assert "1 of 1 objects found" in sanity_check(Sound(), [cat])
    with pytest.raises(UserError, match="does not find the dog in its own picture"):
        sanity_check(Sound(), [cat, (cat[0], "dog")])


def test_the_sanity_check_tells_broken_ones():
    calls = iter(range(100))
    broken = [
        (lambda p: {"cat": [[0, 0, 1, 1, 0.99]]}, "is sure of cat on a plain grey picture"),
        (lambda p: {"cat": [[0, 0, 1, next(calls), 0.5]]}, "does not find the same twice"),
        (lambda p: {"cat": [[0, 0, 1, 1, float("nan")]]}, "detections must be"),
    ]
    for detector, message in broken:
        with pytest.raises(UserError, match=message):
            sanity_check(detector)


def test_detectors_are_found_by_place(tmp_path, monkeypatch):
    (tmp_path / "my_detector.py").write_text(
        "def find(picture): return {}\nclass Made(dict): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_function("my_detector:find", "detector")(None) == {}
    for place, message in (
        ("my_detector", "must be module:function"),
        ("my_detector:fnd", "cannot be imported.*PYTHONPATH"),
        ("no_such_module_x:f", "cannot be imported"),
        ("my_detector:Made", "is no function"),
    ):
        with pytest.raises(UserError, match=message):
            load_function(place, "detector")
    del sys.modules["my_detector"]


# The proxy


def test_instances_are_the_surest_with_the_boxes_of_their_masks():
    logits = np.full((3, 4), -9.0)
    logits[0, 1] = logits[1, 1] = logits[2, 3] = 9.0  # the last class is nothing
    logits[1, 2] = 8.0
    masks = np.full((3, 10, 12), -5.0)
    masks[0, 2:5, 3:9] = 9.0
    masks[1, 0:1, 0:2] = 0.0001  # unclear: sigmoid is a half
    boxes, shapes = instances(logits, masks, ["a", "b", "c"], limit=3)
    assert list(boxes) == ["b", "c"] and len(boxes["b"]) == 2
    assert boxes["b"][0][:4] == [3, 2, 9, 5] and boxes["b"][0][4] == pytest.approx(1, abs=1e-3)
    assert boxes["b"][1][:4] == [0, 0, 2, 1]
    assert boxes["b"][1][4] == pytest.approx(0.5 / (1 + np.exp(-1)), abs=1e-3)
    assert shapes["b"][0].sum() == 18
    assert instances(logits, masks * 0 - 1, ["a", "b", "c"]) == ({}, {})


def test_crops_are_grey_outside_of_the_mask():
    picture = np.full((4, 6, 3), 7, np.uint8)
    inside = np.zeros((4, 6), bool)
    inside[1, 2:4] = True
    crop = cut_out(picture, [2.0, 1.0, 5.0, 3.0, 0.9], inside)
    assert crop[..., 0].tolist() == [[7, 7, 0x99], [0x99, 0x99, 0x99]]


def test_texts_of_a_colour_are_one_direction():
    embedded = np.array([[2.0, 0], [0, 5.0], [3.0, 0], [1.0, 0]])
    assert text_means(embedded, 2) == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [1, 0]]))


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_the_proxy_runs_on_a_random_model(tmp_path):
    module, _, name = PROXY.partition(":")
    Proxy = getattr(importlib.import_module(module), name)
    detector, clip = tmp_path / "detector", tmp_path / "clip"
    _random_detector(detector)
    _random_clip(clip)
    proxy = Proxy(str(detector), str(clip), "cpu")
    assert proxy.name.startswith("proxy: ")
    picture = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    wanted = geneval_classes()
    found = detect(proxy, picture, wanted)
    assert found.boxes and set(found.boxes) <= set(wanted)
    assert {c for colors in found.colors.values() for c in colors} <= set(COLORS)
    assert all(b[:, :4].min() >= 0 and b[:, 2].max() <= 40 for b in found.boxes.values())
    assert "the same twice" in sanity_check(proxy)
    draw(Painter(16), geneval_prompts().spread(6), tmp_path / "out", samples=1)
    assert len(judge_pictures(proxy, tmp_path / "out", tmp_path / "d.jsonl")) == 6
    with pytest.raises(UserError, match="cannot be loaded"):
        Proxy(str(tmp_path / "nothing"))


def _random_detector(path):
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = {"image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4}
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**swin, window_size=2, out_features=stages),
        num_labels=80,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        num_queries=10,
        encoder_layers=1,
        decoder_layers=2,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        num_attention_heads=2,
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(path)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(path)


def _random_clip(path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz-"]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt"))
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = small | {"vocab_size": len(words), "eos_token_id": len(words) - 1}
    vision = small | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(path)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    CLIPProcessor(processor, tokenizer).save_pretrained(path)
