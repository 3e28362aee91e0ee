"""Preparing data: how fast it is, and how fast what it made is read again.

    python -m benchmarks.data.prepare --dir /tmp/prepare
    python -m benchmarks.data.prepare --dir /tmp/prepare --parts vq --preset janus-pro-1b --batch 4

`formats`: how pictures of 384 pixels can be kept without loss: milliseconds to write and to read one, kB.
`prepare`: pictures a second of JPEGs of 640 x 480, which this makes itself, with a model of the released
sizes of pictures and codes but next to no layers: what the host can do. The time of a preparation of one batch
(loading, compiling) is taken off.
`read`: records a second in the form that is packed (source and encoder), one thread on one core.
`vq`: pictures a second that the image tokenizer of `--preset` encodes on this machine, with random weights.

What is needed: a H200 at 45 % MFU trains on 84 pictures a second with the 1B model, on 18 with 7B.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import time
from pathlib import Path

import jax
import numpy as np
import yaml
from PIL import Image

from janus_jax.checkpoints import save_model
from janus_jax.config import PRESETS, DecoderConfig, JanusConfig, SigLIPConfig, VQConfig
from janus_jax.data import SequenceEncoder
from janus_jax.data.formats import FileSource
from janus_jax.data.pictures import PictureBytes
from janus_jax.data_tools.preparation import Options, prepare
from janus_jax.data_tools.preparation.image_codes import PictureCodes
from janus_jax.data_tools.preparation.records import encoded
from janus_jax.models import JanusModel, init_params
from janus_jax.processing import (
    Processor,
    ProcessorConfig,
    build_word_tokenizer,
    generation_pixels,
)

SIDE, BATCH = 384, 16
SMALL = JanusConfig(
    "small",
    SigLIPConfig(image_size=SIDE, patch_size=16, width=16, layers=1, heads=2),
    VQConfig(image_size=SIDE, ch=16, ch_mult=(1,), num_res_blocks=1, norm_groups=8, patch_size=16),
    DecoderConfig(
        vocab_size=64,
        width=32,
        ffw=64,
        layers=1,
        heads=2,
        kv_heads=2,
        head_dim=16,
        max_position=999,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dir", type=Path, required=True, help="for pictures and what is made of them; kept")
    parts = ("formats", "prepare", "read")
    add("--parts", nargs="+", choices=(*parts, "vq"), default=parts)
    add("--pictures", type=int, default=640)
    add("--threads", type=int, nargs="+", default=[1, 2])
    add("--repeats", type=int, default=3)
    add("--preset", choices=PRESETS, default="janus-pro-1b", help="of the part vq")
    add("--batch", type=int, default=1, help="of the part vq")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    if "formats" in args.parts:
        formats()
    if "prepare" in args.parts:
        speed_of_preparing(args)
    if "read" in args.parts:
        speed_of_reading(args)
    if "vq" in args.parts:
        speed_of_encoding(args)


def photograph(seed: int, width: int = 640, height: int = 480) -> bytes:
    """A JPEG with structure of all sizes and some noise: about as large as a photograph's."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128, np.float32)
    for size in (4, 8, 16, 32, 64, 128):
        shape = (height // size + 2, width // size + 2, 3)
        coarse = rng.normal(0, 4 * size**0.5, shape).astype(np.float32)
        for c in range(3):
            part = Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., c] += np.asarray(part)
    pixels += rng.normal(0, 3, (height, width, 1))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def formats() -> None:
    originals = [photograph(i) for i in range(20)]
    began = time.process_time()
    pictures = [
        generation_pixels(Image.fromarray(PictureBytes(data)()), SIDE) for data in originals
    ]
    each = (time.process_time() - began) / len(originals) * 1e3
    kilobytes = statistics.mean(map(len, originals)) / 1e3
    print(f"{'JPEG 640 x 480, resized':30} {'':8} read {each:6.1f} ms {kilobytes:6.0f} kB")

    def png(level: int):
        return lambda pixels: _saved(pixels, "PNG", compress_level=level)

    ways = {"WebP, method 0 (used)": encoded, "PNG, level 1": png(1), "PNG, level 6": png(6)}
    ways["WebP, method 4"] = lambda p: _saved(p, "WEBP", lossless=True, quality=20, method=4)
    ways["no compression (PPM)"] = lambda p: _saved(p, "PPM")
    for name, write in ways.items():
        began = time.process_time()
        files = [write(pixels) for pixels in pictures]
        writing = time.process_time() - began
        began = time.process_time()
        for data, pixels in zip(files, pictures, strict=True):
            if not np.array_equal(PictureBytes(data)(), pixels):
                raise AssertionError(f"{name} changes pixels")
        reading = time.process_time() - began
        ms = [seconds / len(pictures) * 1e3 for seconds in (writing, reading)]
        kilobytes = statistics.mean(map(len, files)) / 1e3
        print(f"{name:25} write {ms[0]:6.1f} ms, read {ms[1]:6.1f} ms {kilobytes:6.0f} kB")


def _saved(pixels: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def make_data(place: Path, count: int) -> Path:
    """Pictures with captions and their manifest, unless they are there."""
    manifest = place / f"pictures_{count}.yaml"
    if manifest.exists():
        return manifest
    (place / "pictures").mkdir(exist_ok=True)
    rows = []
    for i in range(count):
        (place / f"pictures/{i}.jpg").write_bytes(photograph(i))
        rows.append(json.dumps({"image": f"{i}.jpg", "caption": "a red cat on the left"}))
    (place / f"pictures_{count}.jsonl").write_text("\n".join(rows))
    source = dict(name="pictures", task="generation", format="jsonl", image_root="pictures")
    source |= dict(path=f"pictures_{count}.jsonl")
    manifest.write_text(yaml.safe_dump({"sources": [source]}))
    return manifest


def make_model(place: Path) -> tuple[Path, Processor]:
    """The small model, unless it is there, and its processor."""
    tokenizer = build_word_tokenizer("a red cat on the left".split())
    processor = Processor(ProcessorConfig.from_model(SMALL), tokenizer)
    if not (place / "model").exists():
        params = jax.jit(lambda key: init_params(JanusModel(SMALL), key))(jax.random.key(0))
        fields = processor.config.to_dict()
        save_model(place / "model", SMALL, fields, tokenizer.to_json(), jax.device_get(params))
    return place / "model", processor


def speed_of_preparing(args: argparse.Namespace) -> None:
    manifest, (model, _) = make_data(args.dir, args.pictures), make_model(args.dir)

    def seconds(name: str, codes: bool, threads: int, limit: int) -> np.ndarray:
        """[of the clock, of all cores]."""
        began = np.array([time.perf_counter(), time.process_time()])
        fields = dict(codes=codes, batch=BATCH, shard_records=320, threads=threads, limit=limit)
        prepare(Options(manifest, str(model), args.dir / name, quiet=True, **fields))
        return np.array([time.perf_counter(), time.process_time()]) - began

    print(f"{os.cpu_count()} cores, {jax.devices()[0].device_kind}, {args.pictures} pictures")
    for codes in (False, True):
        for threads in args.threads:
            each = []
            for repeat in range(args.repeats):
                name = f"{'codes' if codes else 'pixels'}_{threads}_{time.time_ns()}_{repeat}"
                start = seconds(name + "_start", codes, threads, BATCH)
                whole = seconds(name, codes, threads, args.pictures)
                each.append((whole - start) / (args.pictures - BATCH))
            rates = [1 / clock for clock, _ in each]
            print(
                f"{'--codes   ' if codes else '--no-codes'} --threads {threads}: "
                f"{statistics.median(rates):.0f} pictures/s ({min(rates):.0f} to {max(rates):.0f}), "
                f"{statistics.median(cores for _, cores in each) * 1e3:.1f} ms of a core each"
            )


def speed_of_reading(args: argparse.Namespace) -> None:
    manifest, (model, processor) = make_data(args.dir, args.pictures), make_model(args.dir)
    records, root = str(manifest.with_suffix(".jsonl")), str(args.dir / "pictures")
    found = {"original JPEGs": FileSource("gen", "jsonl", records, root)}
    for name, codes in (("prepared pixels", False), ("prepared codes", True)):
        out = args.dir / f"read_{name.split()[1]}_{args.pictures}"
        prepare(Options(manifest, str(model), out, codes=codes, batch=BATCH, quiet=True))
        found[name] = FileSource("gen", "prepared", str(out / "pictures"))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for name, source in found.items():
        encode = SequenceEncoder(processor, codes="codes" in name)
        order = np.random.default_rng(0).permutation(len(source))
        rates = []
        for _ in range(args.repeats):
            rng, began = np.random.default_rng(0), time.perf_counter()
            for index in order:
                encode(source[int(index)], rng)
            rates.append(len(order) / (time.perf_counter() - began))
        shown = f"{min(rates):.0f} to {max(rates):.0f}"
        print(f"read {name:16}: {statistics.median(rates):7.0f} records/s ({shown}), one core")


def speed_of_encoding(args: argparse.Namespace) -> None:
    config = PRESETS[args.preset].vq
    model = JanusModel(PRESETS[args.preset].replace(scan_layers=True))
    shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))["vq"]
    rng = np.random.default_rng(0)
    draw = lambda s: rng.standard_normal(s.shape, np.float32) * 0.02 + (s.ndim == 1)
    params = {k: jax.tree.map(draw, shapes[k]) for k in ("encoder", "quant_conv", "quantize")}
    encode = PictureCodes(config, params, args.batch)
    pixels = list(
        rng.integers(0, 256, (encode.batch, config.image_size, config.image_size, 3), np.uint8)
    )
    began = time.perf_counter()
    encode(pixels).block_until_ready()
    first = time.perf_counter() - began
    times = []
    for _ in range(args.repeats):
        began = time.perf_counter()
        encode(pixels).block_until_ready()
        times.append(time.perf_counter() - began)
    each = statistics.median(times) / encode.batch
    print(
        f"{args.preset}, {jax.device_count()} x {encode.device}, {encode.batch} at a time: "
        f"{each:.2f} s a picture, {1 / each:.2f} pictures/s; the first batch {first:.1f} s"
    )


if __name__ == "__main__":
    main()
