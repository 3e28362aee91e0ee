"""Whether all PyTorch peers give the same teacher-forced logits and pixels, on a tiny model.

python -m benchmarks.peers.check [--compile]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.peers.compiled_loop import CompiledLoop
from benchmarks.peers.loops import OfficialLoop, TransformersGenerate
from benchmarks.peers.model import build_model, load_model, save_model
from benchmarks.peers.peer import Peer, PeerUnavailable
from janus_jax.config import DecoderConfig, JanusConfig, SigLIPConfig, VQConfig

TINY = JanusConfig(
    "torch-peers-tiny",
    SigLIPConfig(image_size=64, patch_size=16, width=32, layers=1, heads=2),
    VQConfig(image_size=64, codebook_size=64, z_channels=32, ch=32, num_res_blocks=1),
    DecoderConfig(
        vocab_size=96, width=64, ffw=160, layers=3, heads=4, kv_heads=2, head_dim=32
    ),  # grouped heads, and wider than the model: both must be right by name, not by luck
)


def check_tiny(compile: bool) -> bool:
    """Whether all peers give the same teacher-forced logits and pixels; prints what they give."""
    with tempfile.TemporaryDirectory() as directory:
        save_model(build_model(TINY), directory)
        model = load_model(directory)
    fresh = build_model(TINY)
    same = all(
        torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True)
    )
    print(f"saved and loaded: {'equal' if same else 'DIFFERENT'}")
    ids, n = [1, 17, 40, 33, 8, 21, 2], 3
    uncond = [1, 3, 3, 3, 3, 3, 2]
    forced = torch.randint(64, (n, 16), generator=torch.Generator().manual_seed(1))
    make: dict[str, Callable[[], Peer]] = {
        "official loop": lambda: OfficialLoop(model),
        "transformers generate": lambda: TransformersGenerate(model),
        "loop, static cache": lambda: CompiledLoop(model, compile=False),
        "loop, lengths by 5": lambda: CompiledLoop(model, compile=False, bucket=5),
    }
    if compile:
        make["generate, compiled"] = lambda: TransformersGenerate(model, static_compiled=True)
        make["loop, compiled"] = lambda: CompiledLoop(model, compile_vq=True)
        make["loop, compiled, lengths by 16"] = lambda: CompiledLoop(model, bucket=16)
    want, good = None, same
    for name, build in make.items():
        try:
            peer = build()
            got = peer.run(ids, uncond, n, forced=forced, want_logits=True)
            free = peer.run(ids, uncond, n, steps=5, seed=2).codes
        except PeerUnavailable as error:
            print(f"{name:32} not available: {error}")
            continue
        want = want or got
        logits = float((got.logits - want.logits).abs().max())
        pixels = int(np.abs(got.pixels.astype(int) - want.pixels).max())
        good &= logits < 1e-4 and pixels <= 1 and torch.equal(got.codes, forced)
        spent = ", ".join(f"{k} {v:.3f}" for k, v in got.seconds.items())
        print(
            f"{name:32} logits {logits:.1e} (of {want.logits.abs().max():.1f}), pixels {pixels}, first run: "
            f"{spent} s, sampled {free[0].tolist()}"
        )
    print("peers agree" if good else "PEERS DIFFER")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="with compiled ones (minutes)")
    sys.exit(0 if check_tiny(parser.parse_args().compile) else 1)


if __name__ == "__main__":
    main()
