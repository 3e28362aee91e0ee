"""Conversations of several turns, the chat in the terminal, and checkpoints used directly."""

import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummies_model import LONGER, WORDS, make_janus, next_ids, picture, random_params
from PIL import Image

from janus_jax import models
from janus_jax.checkpoints import save_model
from janus_jax.cli.terminal import Terminal, typed_files
from janus_jax.errors import UserError
from janus_jax.inference import Janus
from janus_jax.inference.memory import answer_bytes
from janus_jax.interop import HF
from janus_jax.interop.conversion.cache import ENVIRONMENT, native_directory
from janus_jax.interop.conversion.source import open_source
from janus_jax.interop.conversion.write import write_torch
from janus_jax.processing import (
    Processor,
    ProcessorConfig,
    build_word_tokenizer,
)

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def janus():
    return make_janus(LONGER)


def test_turns_from_the_cache_equal_one_pass_over_everything(janus):
    conversation = janus.conversation()
    turns = [
        ("what is it?", [picture(0), picture(1)], 5),
        ("a red dog", [], 20),
        ("is the cat on the left?", [picture(2)], 3),
    ]
    answers = [("".join(conversation.ask(*turn)), turn) for turn in turns]
    ids, tok = conversation.ids, janus.processor.tokenizer
    assert ids.count(tok.image_id) == 3 * LONGER.siglip.num_patches
    best = next_ids(janus, ids, [p for _, images, _ in turns for p in images])
    ends = [i for i, t in enumerate(ids) if t == tok.eos_id]
    starts = [
        i + 2 for i, t in enumerate(ids) if t == tok.token_id("<|Assistant|>")
    ]  # after the colon
    assert len(ends) == len(starts) == 3
    for (text, (_, _, limit)), start, end in zip(answers, starts, ends, strict=True):
        assert text == tok.decode(ids[start:end]).strip()
        assert ids[start:end] == best[start - 1 : end - 1].tolist()
        assert end - start == limit or best[end - 1] == tok.eos_id
    assert any(end - start > 9 for start, end in zip(starts, ends, strict=True))  # several blocks


def test_the_first_turn_is_what_the_batched_engine_answers(janus):
    for seed in range(3):
        text = "".join(janus.conversation().ask("what is it?", [picture(seed)], 12))
        assert text == janus.answer(picture(seed), "what is it?", max_new_tokens=12)


def test_draws_depend_on_the_seed(janus):
    draw = lambda seed: "".join(janus.conversation(1.5, seed=seed).ask("what is it?", [], 12))
    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_an_answer_that_is_not_waited_for_still_ends(janus):
    whole, cut = janus.conversation(), janus.conversation()
    pieces = cut.ask("a red dog", [], 60)
    next(pieces)
    pieces.close()
    "".join(whole.ask("a red dog", [], 60))
    eos = janus.processor.tokenizer.eos_id
    assert cut.ids[-1] == eos and cut.ids[:-1] == whole.ids[: len(cut.ids) - 1]
    assert len(cut.ids) < len(whole.ids)
    ids = [*cut.ids]
    "".join(cut.ask("is it?", [], 4))
    assert cut.ids[: len(ids)] == ids
    best = next_ids(janus, cut.ids, [])
    start = len(cut.ids) - 1 - cut.ids[::-1].index(janus.processor.tokenizer.token_id(":"))
    assert cut.ids[start + 1 : -1] == best[start : len(cut.ids) - 2].tolist()


def test_what_does_not_fit_is_refused(janus):
    conversation = janus.conversation()
    with pytest.raises(UserError, match="the conversation is too long"):
        conversation.ask("a red cat " * 200)
    with pytest.raises(UserError, match="placeholder"):
        conversation.ask("<image_placeholder> and <image_placeholder>", [picture(0)])
    with pytest.raises(UserError, match="empty"):
        conversation.ask("  ")
    assert conversation.ids == []


# The terminal


def test_a_chat_in_the_terminal(janus, tmp_path):
    picture(0).save(tmp_path / "a.png")
    said = []
    terminal = Terminal(janus, tmp_path / "out", max_new_tokens=6, write=said.append)
    lines = [
        f"/image {tmp_path / 'a.png'}",
        "what is it?",
        "",
        "/image nowhere.png",
        "/dance",
        "is it a zebra?",
        "/draw a red cat",
        "/quit",
        "never read",
    ]
    terminal.run(iter(lines))
    text = "".join(said)
    assert "cannot read image nowhere.png" in text and "no command /dance" in text
    assert "does not know: zebra" in text
    first = janus.answer(picture(0), "what is it?", max_new_tokens=6)
    assert f"now ask about it\n{first}\n" in text
    assert text.endswith(f"{tmp_path / 'out' / 'chat_000.png'}\n")
    assert Image.open(tmp_path / "out" / "chat_000.png").size == (16, 16)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b c.png", "it's.png", 'say "hi".png', "back\\slash.png", "~.png"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a.png", ["a.png"]),
        ("~/a.png", ["{home}/a.png"]),
        ("~/b c.png", ["{home}/b c.png"]),
        (r"~/b\ c.png", ["{home}/b c.png"]),
        ('"~/b c.png"', ["{home}/b c.png"]),
        ("b c.png", ["b c.png"]),
        (r"b\ c.png", ["b c.png"]),
        ("'b c.png'", ["b c.png"]),
        ('"b c.png"', ["b c.png"]),
        ("it's.png", ["it's.png"]),
        (r"it\'s.png", ["it's.png"]),
        ('"it\'s.png"', ["it's.png"]),
        ('say "hi".png', ['say "hi".png']),
        (r"back\slash.png", [r"back\slash.png"]),
        ("~.png", ["~.png"]),
        ("a.png 'b c.png'", ["a.png", "b c.png"]),
        # Not there: the message shows what was meant.
        ("~/x.png", ["{home}/x.png"]),
        ("'~/x y.png'", ["{home}/x y.png"]),
        ("x y.png", ["x y.png"]),
        ("a.png x.png", ["a.png x.png"]),
        ("x'.png", ["x'.png"]),
        ("''", [""]),
        ("~nobody_here/x", ["~nobody_here/x"]),
    ],
)
def test_files_are_meant_as_a_shell_would_read_them(pictures, text, names):
    assert typed_files(text) == [name.replace("{home}", str(pictures)) for name in names]


def test_bad_places_and_control_characters_do_not_end_a_chat(janus, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    said = []
    terminal = Terminal(janus, tmp_path / "file" / "out", max_new_tokens=2, write=said.append)

    def drawn(*args, **kwargs):
        raise AssertionError("drawn although it cannot be written")

    monkeypatch.setattr(janus, "generate", drawn)
    terminal.run(iter(["/draw a red cat", "/image", "/image \x1b[2J", "/\x1b[2J", "zebra"]))
    text = "".join(said)
    assert "the output directory" in text and "Not a directory; choose another place" in text
    assert "/image needs the name of a file" in text
    assert r"cannot read image \x1b[2J" in text and r"no command /\x1b[2J" in text
    assert "does not know: zebra" in text and "\x1b" not in text


def test_ctrl_c_ends_what_is_computed_and_not_the_chat(janus, tmp_path, monkeypatch):
    """Of a drawing, while its programs run; of a question, before its answer begins."""
    generate, conversation, drawn = janus.generate, janus.conversation, []

    def stopped(*args, **kwargs):
        drawn.append(kwargs["seed"])
        if len(drawn) == 1:
            kwargs["preview"] = lambda preview: signal.raise_signal(signal.SIGINT)
        return generate(*args, **kwargs)

    class Stopped:
        def ask(self, *args):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(janus, "generate", stopped)
    said = []
    lines = ["/draw a red cat", "/draw a red cat", "a red dog"]
    Terminal(janus, tmp_path, max_new_tokens=2, write=said.append).run(iter(lines))
    text = "".join(said)
    assert text.count("(stopped)\n") == 1 and drawn == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["chat_000.png"]
    assert text.endswith("".join(conversation().ask("a red dog", [], 2)) + "\n")
    monkeypatch.setattr(janus, "conversation", lambda *args: Stopped())
    Terminal(janus, tmp_path, write=said.append).run(iter(["a red dog", "/help"]))
    assert "".join(said).count("(stopped)\n") == 2


def test_an_answer_cannot_steer_the_terminal(janus, tmp_path, monkeypatch):
    class Hostile:
        def ask(self, *args):
            yield from ("a\n\x1b", "[2J", "b\r\x9b")

    monkeypatch.setattr(janus, "conversation", lambda *args: Hostile())
    said = []
    Terminal(janus, tmp_path, write=said.append).run(iter(["a"]))
    assert "".join(said).endswith("a\n\\x1b[2Jb\\r\\x9b\n")


def test_conversations_that_memory_has_no_room_for_say_so():
    """Before anything is computed, and only once they are too long."""
    processor = Processor(ProcessorConfig.from_model(LONGER), build_word_tokenizer(WORDS))
    limit = 2 * answer_bytes(LONGER, 64, jnp.float32)
    two = Janus(LONGER, random_params(LONGER), processor, memory_limit=limit).conversations(2)
    assert list(two.ask(["a cat", "a dog"], max_new_tokens=8))
    said = two.ids
    with pytest.raises(UserError, match=r"not enough memory for 2 conversation\(s\) of up to"):
        two.ask(["a cat", "a dog"], max_new_tokens=100)
    assert two.ids == said
    assert list(two.ask(["a cat", "a dog"], max_new_tokens=8))  # it goes on


# PyTorch checkpoints, used directly


@pytest.fixture
def hf_directory(tmp_path):
    vq = models.JanusModel(LONGER).config.vq.replace(
        image_size=32, ch=32, ch_mult=(1, 1, 1, 1, 1), norm_groups=32, patch_size=1
    )
    config = LONGER.replace(vq=vq)
    processor = Processor(ProcessorConfig.from_model(config), build_word_tokenizer(WORDS))
    params = jax.tree.map(np.float32, random_params(config))
    save_model(
        tmp_path / "ours", config, processor.config.to_dict(), processor.tokenizer.to_json(), params
    )
    write_torch(
        open_source(tmp_path / "ours"),
        tmp_path / "hf",
        HF,
        processor.config,
        processor.tokenizer,
    )
    return tmp_path / "hf"


def test_a_pytorch_directory_loads_as_it_is_and_is_converted_once(
    hf_directory, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    loaded = Janus.load(hf_directory)
    assert capsys.readouterr().err == "" and not (tmp_path / "cache").exists()
    native = Janus.load(tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, native.weights)
    place = native_directory(hf_directory)
    assert "once" in capsys.readouterr().err and place.parent == tmp_path / "cache"
    assert native_directory(hf_directory) == place and capsys.readouterr().err == ""
    again = Janus.load(hf_directory)
    jax.tree.map(np.testing.assert_array_equal, again.weights, native.weights)
    assert native_directory(tmp_path / "ours") == tmp_path / "ours"
    # Other weights in the same place are another checkpoint.
    shutil.copyfile(hf_directory / "config.json", tmp_path / "copy.json")
    config = json.loads((hf_directory / "config.json").read_text())
    (hf_directory / "config.json").write_text(json.dumps(config, indent=4))
    assert native_directory(hf_directory) != place


def test_what_is_no_checkpoint_keeps_its_own_message(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        Janus.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty"):
        Janus.load(tmp_path / "empty")
