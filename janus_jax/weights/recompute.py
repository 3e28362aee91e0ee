"""Computes again what another program recorded of a model, from the recorded inputs.

Keys are those of `expected.npz`: inputs such as `pixel_values` or `gen_prompt_ids` are read, outputs
such as `und_logits` or `gen_codes_greedy` are computed where they were recorded. Images have their
channels first, as in PyTorch. Nothing of the sampling engines is used: this is the plain reference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from janus_jax.models import Janus, causal_mask, init_cache

Arrays = dict[str, np.ndarray]
FIRST, LAST = "gen_cfg_logits_first", "gen_cfg_logits_last"


class Recomputer:
    """The compiled functions of one model.

    Args:
      model: with unrolled layers.
      params: its parameters.
      forced: whether drawing is fed the recorded codes instead of its own choices, so that the last
        logits can be compared even where rounding made another choice.
    """

    def __init__(self, model: Janus, params: Mapping[str, Any], forced: bool = False):
        self._model, self._params, self._forced = model, params, forced
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
        have = lambda *keys: all(key in recorded for key in keys)
        out: Arrays = {}
        if have("pixel_values"):
            pixels = _channels_last(recorded["pixel_values"])
            out["siglip_features"] = self._apply("siglip_features", pixels)
            out["und_embeds"] = self._apply("embed_images", pixels)
            if have("und_input_ids", "und_image_mask", "und_attention_mask"):
                out |= self._understand(recorded, np.asarray(out["und_embeds"]))
        if have("vq_image"):
            tokenized = self._apply("vq_forward", _channels_last(recorded["vq_image"]))
            out["vq_codes"] = tokenized["codes"]
            out["vq_quant"] = _channels_first(tokenized["quantized"])
        if have("vq_codes"):
            codes = jnp.asarray(recorded["vq_codes"], jnp.int32)
            out["vq_decoded"] = _channels_first(self._apply("decode_codes", codes))
        if have("gen_prompt_ids", "gen_pad_id", "gen_cfg_weight"):
            out |= self._draw(recorded, "gen_prompt_ids", "gen_codes_greedy")
            if have("short_prompt_ids"):
                out |= self._draw(recorded, "short_prompt_ids", "short_codes_greedy")
        if have("gen_codes_greedy"):
            codes = jnp.asarray(recorded["gen_codes_greedy"], jnp.int32)
            pixels = np.asarray(self._apply("decode_codes", codes), np.float32)
            # Truncated, not rounded, as the official script does.
            out["gen_pixels_uint8"] = np.clip((pixels + 1) / 2 * 255, 0, 255).astype(np.uint8)
        return {key: np.asarray(out[key]) for key in out if key in recorded}

    def _understand(self, recorded: Mapping[str, np.ndarray], images: np.ndarray) -> Arrays:
        """Logits of a left-padded batch with a picture a row, and its greedy continuation."""
        ids = np.maximum(recorded["und_input_ids"], 0).astype(np.int32)
        embeds = np.array(self._apply("embed_text", jnp.asarray(ids)))
        slots = recorded["und_image_mask"].astype(bool)
        embeds[slots] = images.reshape(-1, images.shape[-1])
        attended = recorded["und_attention_mask"].astype(bool)
        steps = recorded["und_greedy"].shape[1] if "und_greedy" in recorded else 1

        def choose(params, hidden):
            logits = self._on(params, hidden, "text_logits")
            return jnp.argmax(logits, -1), logits

        embed = lambda params, token: self._on(params, token, "embed_text")
        tokens, margins, hidden, _, _ = self._greedy(embeds, attended, steps, choose, embed)
        self._margins["und_greedy"] = margins
        return {"und_logits": self._apply("text_logits", hidden), "und_greedy": tokens}

    def _draw(self, recorded: Mapping[str, np.ndarray], prompts: str, key: str) -> Arrays:
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
        """Prefill, then one token at a time from the cache.

        Returns:
          (choices [B, steps], margins [b, steps], hidden states of the prefill, first logits, last logits).
        """
        model = self._model
        rows, T = embeds.shape[:2]
        length = T + steps
        dtype = model.policy.compute

        def margin(logits):
            top = jax.lax.top_k(logits, 2)[0]
            return top[..., 0] - top[..., 1]

        @jax.jit
        def run(params, embeds, attended, forced):
            decode = lambda *args: model.apply({"params": params}, *args, method="decode")
            positions = jnp.maximum(jnp.cumsum(attended, 1) - 1, 0)
            room = jnp.pad(attended, ((0, 0), (0, steps)))
            mask = jnp.pad(causal_mask(T), ((0, 0), (0, 0), (0, steps))) & room[:, None, :]
            cache = init_cache(model.config, rows, length, dtype)
            hidden, cache = decode(embeds, positions, mask, cache, 0)
            token, first = choose(params, hidden[:, -1])

            def step(carry, i):
                token, cache, _ = carry
                fed = token if forced is None else forced[:, i - 1]
                seen = jnp.arange(length)
                seen = room | ((seen >= T) & (seen <= T + i - 1))
                state, cache = decode(
                    embed(params, fed)[:, None].astype(dtype),
                    positions[:, -1:] + i,
                    seen[:, None],
                    cache,
                    T + i - 1,
                )
                token, logits = choose(params, state[:, 0])
                return (token, cache, logits), (token, margin(logits))

            start = (token, cache, first)
            (_, _, last), (tokens, margins) = jax.lax.scan(step, start, jnp.arange(1, steps))
            tokens = jnp.concatenate([token[None], tokens]).T
            margins = jnp.concatenate([margin(first)[None], margins]).T
            return tokens, margins, hidden, first, last

        out = run(self._params, jnp.asarray(embeds, dtype), jnp.asarray(attended), forced)
        return (np.asarray(out[0]), np.asarray(out[1]), *out[2:])


def _channels_last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(rearrange(x, "b c h w -> b h w c"), jnp.float32)


def _channels_first(x: jax.Array) -> np.ndarray:
    return rearrange(np.asarray(x), "b h w c -> b c h w")
