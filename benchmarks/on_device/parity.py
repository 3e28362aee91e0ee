"""Whether this device computes the numbers of the official PyTorch code (`tests/data/golden/official_tiny`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.on_device.setting import Results, Setting

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "data" / "golden" / "official_tiny"
TOLERANCE = 1e-4  # of the tests, in float32


def parity(setting: Setting) -> Results:
    """In float32 the absolute error must be that of the tests; bfloat16 is reported."""
    del setting
    for dtype in ("float32", "bfloat16"):
        yield {dtype: _compare(dtype)}


def _compare(dtype: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from safetensors.numpy import load_file

    from janus_jax.config import Policy
    from janus_jax.inference import ImageEngine, fuse_params, make_sampling_params
    from janus_jax.inference.image_engine import Prompts
    from janus_jax.interop import config_from_official, params_from_torch
    from janus_jax.models import JanusModel, causal_mask

    with np.load(GOLDEN / "expected.npz") as arrays:
        want = dict(arrays)
    config = config_from_official(json.loads((GOLDEN / "config.json").read_text()))
    policy = Policy("float32", dtype)
    model = JanusModel(config, policy)
    state = load_file(GOLDEN / "model.safetensors")
    params = jax.tree.map(jnp.asarray, params_from_torch(state, config, "float32"))
    run = jax.jit(
        lambda method, *x: model.apply({"params": params}, *x, method=method), static_argnums=0
    )
    nhwc = lambda x: jnp.asarray(np.moveaxis(x, 1, -1))
    errors: dict[str, dict[str, float]] = {}

    def compare(name: str, native: Any, theirs: np.ndarray) -> None:
        native = np.asarray(native, np.float32)
        error = native - theirs
        scale = np.sqrt((theirs**2).mean())
        errors[name] = {
            "max": float(np.abs(error).max()),
            "relative_rms": float(np.sqrt((error**2).mean()) / scale),
        }

    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        compare(
            "siglip", run("siglip_features", nhwc(want["pixel_values"])), want["siglip_features"]
        )
        images = np.asarray(run("embed_images", nhwc(want["pixel_values"])), np.float32)
        text = np.array(run("embed_text", jnp.asarray(want["und_input_ids"])), np.float32)
        text[want["und_image_mask"]] = images.reshape(-1, images.shape[-1])
        seen = want["und_attention_mask"].astype(bool)
        positions = np.maximum(np.cumsum(seen, 1) - 1, 0)
        mask = causal_mask(text.shape[1]) & seen[:, None, :]
        hidden, _ = run("decode", jnp.asarray(text), positions, mask)
        logits = np.asarray(run("text_logits", hidden))
        compare("text logits", logits[seen], want["und_logits"][seen])
        codes = np.asarray(run("encode_codes", nhwc(want["vq_image"])))
        decoded = run("decode_codes", jnp.asarray(want["vq_codes"]))
        compare("VQ decoder", decoded, np.moveaxis(want["vq_decoded"], 1, -1))

        # Through the engine of sampling: its logits of the official codes choose those codes.
        weight, pad = float(want["gen_cfg_weight"]), int(want["gen_pad_id"])
        sampling, static = make_sampling_params(
            config.vq.codebook_size, cfg_weight=weight, temperature=0.0
        )
        engine = ImageEngine(config, policy)
        weights = fuse_params(params, config, policy)
        ids = want["gen_prompt_ids"]
        blank = np.full_like(ids, pad)
        blank[:, [0, -1]] = ids[:, [0, -1]]
        ids = np.concatenate([ids, blank]).astype(np.int32)
        rows = np.arange(len(ids), dtype=np.int32).reshape(2, -1)
        prompts = Prompts(jnp.asarray(ids), jnp.ones(ids.shape, bool), jnp.asarray(rows))
        forced = want["gen_codes_greedy"].astype(np.int32)
        guided = np.asarray(engine.score(weights, prompts, jnp.asarray(forced), sampling))
        compare("first guided logits", guided[:, 0], want["gen_cfg_logits_first"])
        compare("last guided logits", guided[:, -1], want["gen_cfg_logits_last"])
        keys = jax.random.split(jax.random.key(0), len(forced))
        drawn, pixels = engine.draw(weights, prompts, keys, sampling, static=static)
    pixels = np.abs(np.asarray(pixels).astype(int) - want["gen_pixels_uint8"])
    worst = max(error["max"] for error in errors.values())
    equal = {
        "VQ codes": float((codes == want["vq_codes"]).mean()),
        "greedy codes, given the codes before": float((guided.argmax(-1) == forced).mean()),
        "greedy codes, drawn freely": float((np.asarray(drawn) == forced).mean()),
        "pixels within 1 of 255": float((pixels <= 1).mean()),
    }
    exact = worst <= TOLERANCE and all(
        share == 1 for name, share in equal.items() if "pixels" not in name
    )
    return {"errors": errors, "equal": equal, "worst": worst, "exact": bool(exact)}
