"""Sets of prompts to draw: GenEval's and DPG-Bench's, which come with the package, and files of one's own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from janus_jax import untrusted
from janus_jax.errors import UserError, nearest

GENEVAL_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
BUILT_IN = ("geneval", "dpg")
_KEY_BYTES = 200  # of 255 that a file's name may have: what a layout adds fits
_ASSETS = resources.files("janus_jax.evaluation.generation") / "assets"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt of a set.

    Attributes:
      number: in its set, from 0.
      key: name of its picture or folder, without a suffix; unique in its set.
      text: what is drawn.
      line: the source line of a JSONL file without its line end; "" elsewhere.
      occurrence: how many prompts before it in its set have the same text.
    """

    number: int
    key: str
    text: str
    line: str = ""
    occurrence: int = 0

    @property
    def metadata(self) -> dict[str, Any]:
        """The fields of the source line; {} without one."""
        return json.loads(self.line) if self.line else {}


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Prompts in order, all of a set or some.

    Attributes:
      name: "geneval", "dpg", or the name of a file.
      prompts: those to draw; each keeps its number of the whole set.
      total: of the whole set.
      fingerprint: SHA-256 of the whole set, also where only some are drawn.
    """

    name: str
    prompts: tuple[Prompt, ...]
    total: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def partial(self) -> bool:
        """Whether prompts of the set are left out, so that its scores are not those of the benchmark."""
        return len(self.prompts) < self.total

    def spread(self, count: int | None) -> PromptSet:
        """`count` prompts at even distances, so of all kinds where the set is in order of kinds; None is all.

        Raises:
          UserError: no number of prompts.
        """
        if count is None:
            return self
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"a number of prompts must be 1 or more, not {count!r}")
        if count >= len(self.prompts):
            return self
        chosen = tuple(self.prompts[i * len(self.prompts) // count] for i in range(count))
        return dataclasses.replace(self, prompts=chosen)


def geneval_prompts() -> PromptSet:
    """GenEval's 553 prompts; a prompt's `line` has its conditions."""
    text = (_ASSETS / "geneval_evaluation_metadata.jsonl").read_text("utf-8")
    return _of_json_lines(text, "geneval", Path("geneval_evaluation_metadata.jsonl"))


def dpg_prompts() -> PromptSet:
    """DPG-Bench's 1065 prompts in order of their names, such as "COCOval2014000000010363"."""
    found = json.loads((_ASSETS / "dpg_bench_prompts.json").read_text("utf-8"))
    return make_prompts("dpg", [(key, text, "") for key, text in found.items()])


def geneval_classes() -> tuple[str, ...]:
    """The 80 names of objects of GenEval, in the order of COCO's classes."""
    return tuple((_ASSETS / "geneval_object_names.txt").read_text("utf-8").split("\n")[:80])


def prompt_set(name: str | Path) -> PromptSet:
    """The prompts of a built-in benchmark ("geneval", "dpg") or of a file; see `read_prompts`.

    Raises:
      UserError: neither; or see `read_prompts`.
    """
    if name == "geneval":
        return geneval_prompts()
    if name == "dpg":
        return dpg_prompts()
    path = Path(name)
    if not path.is_dir() and not untrusted.is_file(path):
        raise UserError(
            f"no prompts {untrusted.printable(name)}: neither {' nor '.join(BUILT_IN)}, nor a file or folder."
            f"{nearest(str(name), BUILT_IN)}"
        )
    return read_prompts(path)


def read_prompts(path: str | Path) -> PromptSet:
    """Reads prompts from a file or folder.

    - `.txt`: one a line; empty lines are left out, and what is behind a tab, as T2I-CompBench reads its files;
    - `.jsonl`: {"prompt": text, "id": name of the picture, ...} a line; GenEval's own lines are such;
    - `.json`: {name of the picture: text};
    - a folder: its `.txt` files, a prompt each, as DPG-Bench is distributed.

    Raises:
      UserError: unreadable, no prompts, or a line that is none; the message names the line.
    """
    path = Path(path)
    name = untrusted.printable(path.stem or path.name)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix == ".txt")
        return make_prompts(name, [(p.stem, _one_text(p), "") for p in files], path)
    text = untrusted.read_text(path).removeprefix("\ufeff")
    if path.suffix == ".jsonl":
        return _of_json_lines(text, name, path)
    if path.suffix == ".json":
        found = untrusted.read_json(path)
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise UserError(f"{_shown(path)} must be {{name of the picture: prompt, ...}}")
        return make_prompts(name, [(key, text, "") for key, text in found.items()], path)
    if path.suffix != ".txt":
        raise UserError(
            f"{_shown(path)}: prompts are read from .txt, .jsonl and .json files, and from folders of .txt files"
        )
    lines = [line.split("\t")[0].strip() for line in text.split("\n")]
    return make_prompts(name, [("", line, "") for line in lines if line], path)


def make_prompts(
    name: str, found: Iterable[tuple[str, str, str]], path: Path | None = None
) -> PromptSet:
    """A set of (key or "" for the number, text, source line), checked.

    Raises:
      UserError: no prompts, an empty one, or a key that is there twice or no name of a file.
    """
    where = _shown(path or name)
    prompts: list[Prompt] = []
    keys: set[str] = set()
    texts: Counter[str] = Counter()
    for number, (key, text, line) in enumerate(found):
        key = key or f"{number:05d}"
        if not text.strip():
            raise UserError(f"{where}: the prompt {untrusted.shown(key)} is empty")
        if not _is_unicode(text):
            raise UserError(f"{where}: the prompt {untrusted.shown(key)} has halves of characters")
        _check_key(key, where)
        if key in keys:
            raise UserError(f"{where}: two prompts have the name {untrusted.shown(key)}")
        keys.add(key)
        prompts.append(Prompt(number, key, text, line, texts[text]))
        texts[text] += 1
    if not prompts:
        raise UserError(f"{where} has no prompts")
    content = json.dumps([[p.key, p.text, p.line] for p in prompts])
    digest = hashlib.sha256(content.encode()).hexdigest()
    return PromptSet(name, tuple(prompts), len(prompts), digest)


def _of_json_lines(text: str, name: str, path: Path) -> PromptSet:
    """The prompts of GenEval's lines, or of others with a "prompt"; `line` stays as it is, byte for byte."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            prompt = fields["prompt"]
            key = fields.get("id", "")
            sound = isinstance(prompt, str) and isinstance(key, str | int)
        except (*untrusted.SENSELESS, RecursionError):
            sound = False
        if not sound:
            raise UserError(
                f'{_shown(path)}, line {number}: must be an object with a text "prompt", not '
                f"{untrusted.shown(line)}"
            )
        found.append((str(key), prompt, line))
    return make_prompts(name, found, path)


def is_geneval(prompts: PromptSet) -> bool:
    """Whether the lines of a set have GenEval's conditions, so that its rules can judge the pictures."""
    return all(_has_conditions(prompt.metadata) for prompt in prompts.prompts)


def _has_conditions(metadata: Mapping[str, Any]) -> bool:
    return isinstance(metadata.get("tag"), str) and isinstance(metadata.get("include"), list)


def _one_text(path: Path) -> str:
    return untrusted.read_text(path).removeprefix("\ufeff").strip()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can hold half of a pair of surrogates
        return False
    return True


def _check_key(key: str, where: str) -> None:
    """Raises UserError for what is no safe name of a file."""
    plain = untrusted.printable(key, len(key) + 1) == key
    if not plain or key.startswith(".") or set(key) & set("/\\:") or len(key.encode()) > _KEY_BYTES:
        raise UserError(
            f"{where}: {untrusted.shown(key)} cannot be the name of a picture: no /, \\, : or control "
            f"characters, no dot at the start, at most {_KEY_BYTES} bytes"
        )


def _shown(path: object) -> str:
    return untrusted.printable(path, 200)
