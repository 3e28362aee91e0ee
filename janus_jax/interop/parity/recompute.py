"""Computes again what another program recorded of a model, from the recorded inputs.

Keys are those of `expected.npz`: inputs such as `pixel_values` or `gen_prompt_ids` are read, outputs
such as `und_logits` or `gen_codes_greedy` are computed where they were recorded. Images have their
channels first, as in PyTorch. Nothing of the sampling engines is used: this is an independent reference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from janus_jax.models import JanusModel, causal_mask, init_cache
from janus_jax.pixels import to_uint8

Arrays = dict[str, np.ndarray]
FIRST, LAST = "gen_cfg_logits_first", "gen_cfg_logits_last"
BLOCK = 16  # steps of greedy decoding between two reports

# Called with the part that runs, the steps done so far, and those of all parts.
Progress = Callable[[str, int, int], None]


def silent(part: str, done: int, total: int) -> None:
    """The `Progress` that shows nothing."""


def parts(recorded: Mapping[str, np.ndarray], num_codes: int) -> dict[str, int]:
    """What can be computed from what was recorded, in this order, with the steps of each part."""
    have = lambda *keys: all(key in recorded for key in keys)
    drawing = have("gen_prompt_ids", "gen_pad_id", "gen_cfg_weight")
    answer = recorded["und_greedy"].shape[1] if have("und_greedy") else 0
    steps = {
        "SigLIP": have("pixel_values"),
        "answer": have("pixel_values", "und_input_ids", "und_image_mask", "und_attention_mask")
        and max(answer, 1),
        "VQ encoder": have("vq_image"),
        "VQ decoder": have("vq_codes"),
        "picture": drawing and num_codes,
        "short picture": drawing and have("short_prompt_ids") and num_codes,
        "pixels": have("gen_codes_greedy"),
    }
    return {part: int(count) for part, count in steps.items() if count}


class Recomputer:
    """The compiled functions of one model.

    Args:
      model: with unrolled layers.
      params: its parameters.
      forced: whether drawing is fed the recorded codes instead of its own choices, so that the last
        logits can be compared even where rounding made another choice.
      progress: called for each part as it starts, as its steps are done, and as it ends.
    """

    def __init__(
        self,
        model: JanusModel,
        params: Mapping[str, Any],
        forced: bool = False,
        progress: Progress = silent,
    ):
        self._model, self._params, self._forced = model, params, forced
        self._progress, self._part, self._done, self._total = progress, "", 0, 0
        self._margins: Arrays = {}

        @functools.partial(jax.jit, static_argnames="method")
        def apply(params, method, *args):
            return model.apply({"params": params}, *args, method=method)

        self._apply = lambda method, *args: apply(params, method, *args)

    @property
    def margins(self) -> Arrays:
        """For each key of greedy choices, [B, steps]: how far the best logit is above the second."""
        return self._margins

    def __call__(self, recorded: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs whose inputs were recorded; see the module for the keys."""
        out: Arrays = {}
        run = {
            "SigLIP": lambda: self._encode_images(recorded),
            "answer": lambda: self._answer(recorded, out["und_embeds"], steps["answer"]),
            "VQ encoder": lambda: self._encode_codes(recorded),
            "VQ decoder": lambda: {
                "vq_decoded": _channels_first(self._decode_codes(recorded["vq_codes"]))
            },
            "picture": lambda: self._generate(recorded, "gen_prompt_ids", "gen_codes_greedy"),
            "short picture": lambda: self._generate(
                recorded, "short_prompt_ids", "short_codes_greedy"
            ),
            "pixels": lambda: {
                "gen_pixels_uint8": to_uint8(self._decode_codes(recorded["gen_codes_greedy"]))
            },
        }
        steps = parts(recorded, self._model.config.vq.num_codes)
        self._done, self._total = 0, sum(steps.values())
        for self._part, count in steps.items():
            end = self._done + count
            self._advance(0)
            out |= run[self._part]()
            self._advance(end - self._done)
        return {key: np.asarray(out[key]) for key in out if key in recorded}

    def _advance(self, steps: int) -> None:
        self._done += steps
        self._progress(self._part, self._done, self._total)

    def _encode_images(self, recorded: Mapping[str, np.ndarray]) -> Arrays:
        pixels = _channels_last(recorded["pixel_values"])
        features, embeds = (self._apply(m, pixels) for m in ("siglip_features", "embed_images"))
        return {"siglip_features": np.asarray(features), "und_embeds": np.asarray(embeds)}

    def _encode_codes(self, recorded: Mapping[str, np.ndarray]) -> Arrays:
        tokenized = self._apply("vq_forward", _channels_last(recorded["vq_image"]))
        quantized = _channels_first(tokenized["quantized"])
        return {"vq_codes": np.asarray(tokenized["codes"]), "vq_quant": quantized}

    def _decode_codes(self, codes: np.ndarray) -> np.ndarray:
        return np.asarray(self._apply("decode_codes", jnp.asarray(codes, jnp.int32)), np.float32)

    def _answer(self, recorded: Mapping[str, np.ndarray], images: np.ndarray, steps: int) -> Arrays:
        """Logits of a left-padded batch with a picture a row, and its greedy continuation."""
        ids = np.maximum(recorded["und_input_ids"], 0).astype(np.int32)
        embeds = np.array(self._apply("embed_text", jnp.asarray(ids)))
        image_mask = recorded["und_image_mask"].astype(bool)
        embeds[image_mask] = images.reshape(-1, images.shape[-1])
        attended = recorded["und_attention_mask"].astype(bool)

        def choose(params, hidden):
            logits = self._on(params, hidden, "text_logits")
            return jnp.argmax(logits, -1), logits

        embed = lambda params, token: self._on(params, token, "embed_text")
        tokens, margins, hidden, _, _ = self._greedy(embeds, attended, steps, choose, embed)
        self._margins["und_greedy"] = margins
        return {"und_logits": self._apply("text_logits", hidden), "und_greedy": tokens}

    def _generate(self, recorded: Mapping[str, np.ndarray], prompts: str, key: str) -> Arrays:
        """Greedy codes under guidance, with the first and the last guided logits."""
        ids = recorded[prompts].astype(np.int32)
        pad, weight = int(recorded["gen_pad_id"]), float(recorded["gen_cfg_weight"])
        # Unconditional: as long, everything but the first and the last token is an attended pad.
        unconditional = np.full_like(ids, pad)
        unconditional[:, [0, -1]] = ids[:, [0, -1]]
        both = jnp.asarray(np.concatenate([ids, unconditional]))
        embeds = np.asarray(self._apply("embed_text", both))

        def choose(params, hidden):
            logits = self._on(params, hidden, "image_logits")
            conditional, unconditional = jnp.split(logits, 2)
            guided = unconditional + weight * (conditional - unconditional)
            return jnp.tile(jnp.argmax(guided, -1), 2), guided

        embed = lambda params, codes: self._on(params, codes, "embed_codes")
        forced = None
        if self._forced and key in recorded:
            forced = np.tile(recorded[key], (2, 1)).astype(np.int32)
        steps = self._model.config.vq.num_codes
        everywhere = np.ones(both.shape, bool)
        codes, margins, _, first, last = self._greedy(
            embeds, everywhere, steps, choose, embed, forced
        )
        out = {key: codes[: len(ids)]}
        self._margins[key] = margins
        if key == "gen_codes_greedy":
            out |= {FIRST: first, LAST: last}
        return out

    def _on(self, params: Any, x: jax.Array, method: str) -> jax.Array:
        return self._model.apply({"params": params}, x, method=method)

    def _greedy(
        self,
        embeds: np.ndarray,
        attended: np.ndarray,
        steps: int,
        choose: Callable,
        embed: Callable,
        forced: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, jax.Array, jax.Array, jax.Array]:
        """Prefill, then one token at a time from the cache, a block of them to a call.

        Returns:
          (choices [B, steps], margins [b, steps], hidden states of the prefill, first logits, last logits).
        """
        model = self._model
        rows, T = embeds.shape[:2]
        blocks = -(-(steps - 1) // BLOCK)
        # All blocks are one program: the last may go on past the end, into prompt_mask that nothing else reads.
        length = T + blocks * BLOCK
        dtype = model.policy.compute

        def margin(logits):
            top = jax.lax.top_k(logits, 2)[0]
            return top[..., 0] - top[..., 1]

        @jax.jit
        def prefill(params, embeds, attended):
            positions = jnp.maximum(jnp.cumsum(attended, 1) - 1, 0)
            prompt_mask = jnp.pad(attended, ((0, 0), (0, length - T)))
            mask = (
                jnp.pad(causal_mask(T), ((0, 0), (0, 0), (0, length - T))) & prompt_mask[:, None, :]
            )
            cache = init_cache(model.config, rows, length, dtype)
            hidden, cache = model.apply(
                {"params": params}, embeds, positions, mask, cache, 0, method="decode"
            )
            token, first = choose(params, hidden[:, -1])
            return cache, token, first, margin(first), hidden, prompt_mask, positions[:, -1:]

        @functools.partial(jax.jit, donate_argnames="cache")
        def block(params, cache, token, last, start, prompt_mask, position, forced):
            def step(carry, i):
                cache, token, last = carry
                fed = token if forced is None else forced[:, i - 1]
                seen = jnp.arange(length)
                seen = prompt_mask | ((seen >= T) & (seen <= T + i - 1))
                hidden, cache = model.apply(
                    {"params": params},
                    embed(params, fed)[:, None].astype(dtype),
                    position + i,
                    seen[:, None],
                    cache,
                    T + i - 1,
                    method="decode",
                )
                token, logits = choose(params, hidden[:, 0])
                last = jnp.where(i < steps, logits, last)
                return (cache, token, last), (token, margin(logits))

            return jax.lax.scan(step, (cache, token, last), start + jnp.arange(BLOCK))

        embeds, attended = jnp.asarray(embeds, dtype), jnp.asarray(attended)
        cache, token, first, gap, hidden, prompt_mask, position = prefill(
            self._params, embeds, attended
        )
        tokens, margins, last = [token[None]], [gap[None]], first
        jax.block_until_ready(token)
        self._advance(1)
        for start in range(1, steps, BLOCK):
            (cache, token, last), (chosen, gaps) = block(
                self._params, cache, token, last, start, prompt_mask, position, forced
            )
            tokens.append(jax.block_until_ready(chosen))
            margins.append(gaps)
            self._advance(min(BLOCK, steps - start))
        cut = lambda x: np.concatenate(x)[:steps].T
        return cut(tokens), cut(margins), hidden, first, last


def _channels_last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(rearrange(x, "b c h w -> b h w c"), jnp.float32)


def _channels_first(x: jax.Array) -> np.ndarray:
    return rearrange(np.asarray(x), "b h w c -> b c h w")
