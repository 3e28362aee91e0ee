"""Draws pictures from prompts, or answers questions about a picture.

  python sample.py --checkpoint runs/janus_tiny --prompt "a red apple on the left" --num_images 4
  python sample.py --checkpoint runs/janus_tiny --image out/image_000.png --question "what is it?"
  python sample.py --checkpoint models/janus-pro-1b --prompt "a fox in the snow" --num_images 16 --preview
  python sample.py --checkpoint models/janus-pro-1b --interactive --warmup
  python sample.py --checkpoint runs/mine --step best --prompt "my dog"
  python sample.py --checkpoint models/janus-pro-1b --adapter runs/mine/adapter/stage3 --prompt "my dog"

A checkpoint is a model or run directory, or PyTorch weights (a directory or a hub id).
Writes image_000.png, ..., grid.png (more than one picture) and samples.json to --out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from janus_jax.cli.parser import Parser, step_of_run
from janus_jax.console import printable
from janus_jax.errors import UserError, run_main
from janus_jax.files import atomic_write
from janus_jax.places import check_directory, make_directory
from janus_jax.processing import GenerationConfig, grid, load_image, save_image
from janus_jax.untrusted import read_json

MIN_TILE = 192  # pixels of a picture in grid.png, so that small ones can be seen


def parse_flags() -> argparse.Namespace:
    """Reads the flags; raises UserError for what can be seen to be wrong without the model."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", metavar="DIR|ID", default="runs/janus_tiny", help="default: %(default)s")
    add(
        "--adapter",
        metavar="DIR|ID",
        help="a LoRA adapter for it, as PEFT writes it, and a run to RUN/adapter/STAGE",
    )
    add(
        "--step",
        type=step_of_run,
        metavar="N|best",
        help="of a training run; best: that with the lowest held-out loss; default: the newest",
    )
    add("--prompt", action="append", default=[], help="what to draw; may be repeated")
    add("--num_images", type=int, default=1, metavar="N", help="pictures of each prompt")
    add("--seed", type=int, default=0, help="other seeds, other pictures")
    add("--cfg_weight", type=float, help="guidance; default: the checkpoint's own")
    add(
        "--temperature",
        type=float,
        help="0 is greedy; default: the checkpoint's for pictures, 0 for answers",
    )
    add("--top_k", type=int, help="draw from the K most likely codes")
    add("--top_p", type=float, help="draw from the most likely codes of this total probability")
    add("--image", metavar="FILE", help="the picture to ask about")
    add("--question", action="append", default=[], help="asked about --image; may be repeated")
    add("--interactive", action="store_true", help="a chat in the terminal, with pictures")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: float32 on a CPU, else bfloat16",
    )
    add(
        "--int8",
        default="",
        metavar="PARTS",
        help="'weights', 'cache' or 'weights,cache': less memory",
    )
    add("--mesh", default="", metavar="SIZES", help="several devices, such as data=2,tensor=4")
    add(
        "--memory_gb", type=float, metavar="GB", help="of a batch, beside the weights; default: all"
    )
    add("--preview", action="store_true", help="image_000.png, ... grow while they are drawn")
    add("--warmup", action="store_true", help="compile everything first, then draw, answer or chat")
    add("--max_new_tokens", type=int, default=512, metavar="N", help="of an answer")
    add("--out", metavar="DIR", default="out", help="default: %(default)s")
    flags = parser.parse_args()
    if flags.interactive and (flags.prompt or flags.image or flags.question):
        raise UserError(
            "--interactive goes without --prompt, --image and --question: type them there"
        )
    if not (flags.prompt or flags.image or flags.question or flags.interactive):
        raise UserError("nothing to do: give --prompt, or --image and --question, or --interactive")
    if bool(flags.image) != bool(flags.question):
        raise UserError("--image and --question go together: give both")
    if flags.num_images < 1:
        raise UserError(f"--num_images must be at least 1, got {flags.num_images}")
    if flags.memory_gb is not None and not 0 < flags.memory_gb * 2**30 < math.inf:
        raise UserError(
            f"--memory_gb must be above 0 and finite, got {flags.memory_gb}; without it, all that is "
            "free is used"
        )
    for name, texts in (("--prompt", flags.prompt), ("--question", flags.question)):
        if not all(text.strip() for text in texts):
            raise UserError(f"{name} is empty")
    return flags


def progress(items: list) -> tqdm:
    """A bar on stderr when there is more than one item."""
    return tqdm(items, unit="batch", disable=len(items) < 2)


def chat(janus, flags: argparse.Namespace) -> None:
    """The chat in the terminal, until /quit or the end of the input."""
    from janus_jax.cli.terminal import Terminal

    def lines():
        while True:
            try:
                yield input("> ")
            except EOFError:
                print()
                return

    drawing = GenerationConfig(
        cfg_weight=flags.cfg_weight,
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
    )
    Terminal(
        janus,
        Path(flags.out),
        flags.temperature or 0.0,
        flags.top_p,
        flags.seed,
        flags.max_new_tokens,
        drawing=drawing,
        pictures=flags.num_images,
    ).run(lines())


def warm_up(janus, flags: argparse.Namespace, previews: bool) -> None:
    """Compiles the programs that these flags lead to, with a bar."""
    count = janus.warmup(
        pictures=[flags.num_images] if flags.prompt or flags.interactive else [],
        answers=[1] if flags.question or flags.interactive else [],
        max_new_tokens=flags.max_new_tokens,
        cfg_weight=flags.cfg_weight,
        temperature=flags.temperature,
        previews=previews and not flags.interactive,
        progress=lambda programs: tqdm(programs, unit="program", desc="compiling", disable=None),
    )
    print(f"compiled {count} programs")


def draw(janus, flags: argparse.Namespace, out: Path, files: list[str], seen: bool) -> dict:
    """Draws and writes the pictures and grid.png; returns their part of samples.json."""
    from janus_jax.inference import PreviewWriter

    own = janus.processor.config
    settings = {
        "cfg_weight": own.cfg_weight if flags.cfg_weight is None else flags.cfg_weight,
        "temperature": own.temperature if flags.temperature is None else flags.temperature,
        "top_k": flags.top_k,
        "top_p": flags.top_p,
    }
    paths = [out / file for file in files] if flags.preview else None
    total = len(files) * janus.config.vq.num_codes
    with tqdm(total=total, unit="code", disable=None if seen else True) as bar:
        writer = PreviewWriter(paths, lambda done: bar.update(done - bar.n)) if seen else None
        images = janus.generate(
            flags.prompt, flags.num_images, seed=flags.seed, preview=writer, **settings
        )
    for file, image in zip(files, images, strict=True):
        save_image(out / file, image)
    if len(images) > 1:
        scale = -(-MIN_TILE // images[0].width)
        tiles = [i.resize((i.width * scale, i.height * scale), resample=0) for i in images]
        columns = flags.num_images if len(flags.prompt) > 1 else None  # a row for each prompt
        save_image(out / "grid.png", grid(tiles, columns))
    prompts = (prompt for prompt in flags.prompt for _ in range(flags.num_images))
    entries = [
        {"file": file, "prompt": prompt, "index": i % flags.num_images}
        for i, (file, prompt) in enumerate(zip(files, prompts, strict=True))
    ]
    return {"settings": settings, "images": entries}


def answer(janus, flags: argparse.Namespace, asked: Image.Image) -> dict:
    """Answers the questions; returns their part of samples.json."""
    answers = janus.answer_batch(
        [asked] * len(flags.question),
        flags.question,
        max_new_tokens=flags.max_new_tokens,
        temperature=flags.temperature or 0.0,
        top_p=flags.top_p,
        seed=flags.seed,
        progress=progress,
    )
    entries = [
        {"image": flags.image, "question": question, "answer": answer}
        for question, answer in zip(flags.question, answers, strict=True)
    ]
    return {"answers": entries}


def write_record(path: Path, record: dict) -> None:
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    # Lone surrogates stand for bytes of a name that is no UTF-8; "\\udcff" is JSON for one.
    atomic_write(path, text.encode(errors="backslashreplace"))


def earlier_calls(path: Path, files: list[str]) -> list[dict]:
    """What samples.json says of pictures of earlier calls, newest first, which lie there and stay.

    Args:
      path: samples.json; without one, or of another kind, nothing is known.
      files: what this call draws, in the place of older pictures.
    """
    found = []
    try:
        record = read_json(path)
        for call in [record, *record.get("earlier", [])]:
            images = [
                image
                for image in call.get("images", [])
                if image["file"] not in files and (path.parent / image["file"]).is_file()
            ]
            if images:
                fields = ("checkpoint", "seed", "settings")
                known = {name: call.get(name) for name in fields}
                extra = ("adapter", "stage", "step")
                known |= {name: call[name] for name in extra if name in call}
                found.append(known | {"images": images})
    except (UserError, OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # a person, or another program, wrote it
    return found


def main() -> None:
    flags = parse_flags()
    asked = load_image(flags.image) if flags.image else None
    out = Path(flags.out)
    files = [f"image_{i:03d}.png" for i in range(len(flags.prompt) * flags.num_images)]
    if not flags.interactive:  # before anything is loaded or drawn
        check_directory(out, "--out", [*files, "grid.png", "samples.json"])

    from janus_jax.config import Policy  # after the flags: JAX takes seconds to import
    from janus_jax.inference import Janus, enable_compilation_cache
    from janus_jax.parallel import parse_mesh

    enable_compilation_cache()
    janus = Janus.load(
        flags.checkpoint,
        step=flags.step,
        policy=Policy.auto(flags.dtype),
        int8=[part for part in flags.int8.split(",") if part],
        mesh=parse_mesh(flags.mesh, "--mesh"),
        memory_limit=None if flags.memory_gb is None else int(flags.memory_gb * 2**30),
        adapter=flags.adapter,
    )
    at = {name: janus.origin[name] for name in ("stage", "step") if name in janus.origin}
    if flags.step is not None:
        print(f"step {at['step']} of {printable(at['stage'])}", file=sys.stderr)
    seen = flags.preview or sys.stderr.isatty()
    if flags.warmup:
        warm_up(janus, flags, seen)
    if flags.interactive:
        chat(janus, flags)
        return
    make_directory(out)
    unknown = janus.processor.tokenizer.unknown_words(" ".join(flags.prompt + flags.question))
    if unknown:
        words = printable(", ".join(unknown))
        print(f"warning: the model does not know: {words}", file=sys.stderr)

    # Every result is on disk before anything is printed about it.
    record = {"checkpoint": flags.checkpoint, "seed": flags.seed, **at}
    record |= {"adapter": flags.adapter} if flags.adapter else {}
    earlier = earlier_calls(out / "samples.json", files)
    kept = {"earlier": earlier} if earlier else {}
    if flags.prompt:
        record |= draw(janus, flags, out, files, seen)
        write_record(out / "samples.json", record | kept)
        print(f"wrote {len(files)} image{'s' * (len(files) > 1)} to {printable(out)}")
    if asked:
        record |= answer(janus, flags, asked)
        write_record(out / "samples.json", record | kept)
        for entry in record["answers"]:
            question, answer_text = (
                printable(entry[name], keep="\n\t") for name in ("question", "answer")
            )
            print(f"{question}\n  {answer_text}")


def command() -> None:
    """Runs as a command: exit codes instead of exceptions."""
    run_main(main)


if __name__ == "__main__":
    command()
