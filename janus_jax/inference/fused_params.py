"""The parameters as sampling reads them: one dict a layer, fused products, outputs first.

Made once when a model is loaded. Query, key and value are one product, and so are gate and up: fewer
and larger reads. Query heads lie with the key head they share, so that a `tensor` mesh axis cuts between
key heads and every slice stays on its device.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from janus_jax import models
from janus_jax.checkpoints import load_leaves
from janus_jax.config import JanusConfig, Policy
from janus_jax.errors import UserError
from janus_jax.inference.cpu import by_onednn
from janus_jax.parallel import param_shardings, replicated

Weights = dict[str, Any]

# How the axes of a weight lie on a mesh. Sampling copies weights over `data` and `fsdp`.
SPECS = {
    "qkv": P("tensor", None, None, None),
    "o": P(None, "tensor"),
    "gate_up": P(None, "tensor", None),
    "down": P(None, "tensor"),
    "lm_head": P("tensor", None),
    "head": P("tensor", None),
}
# Rows are looked up in these. In bfloat16 their bits are kept as integers: XLA's CPU backend would cast the
# whole table to float32 each time that a program starts.
_TABLES = ("embed", "codes")
# Logits are float32, and oneDNN, on a CPU, gives results in the dtype of the weight: there these are kept in
# float32, with the values that they have in the compute dtype.
_HEADS = ("lm_head", "head")
_QUANTIZED = {"qkv": 1, "o": 1, "gate_up": 1, "down": 1, "lm_head": 1, "proj": 1, "head": 1}


def fuse_params(
    params: models.Params,
    config: JanusConfig,
    policy: Policy,
    mesh: Mesh | None = None,
    int8: bool = False,
    donate_params: bool = False,
    platform: str | None = None,
) -> Weights:
    """Parameters -> what the engines read.

    Args:
      params: tree of either layer layout, on the host or a device; or of `LazyArray`s, of which a layer or a
        table is in memory at a time.
      config: its architecture.
      policy: weights are kept in `policy.compute` (tables in bfloat16 as their bits; of the heads see
        `_HEADS`); SigLIP and adaptors in `policy.param`, the image tokenizer in float32.
      mesh: cuts weights over `tensor`; None is one device.
      int8: weights of the language model and the heads in int8, one scale an output (needs qwix).
      donate_params: takes the layers out of `params` one by one, so that an unrolled language model is never in
        memory twice; the tree is of no use afterwards.
      platform: what the weights are for, such as "tpu"; None is the default one.

    Returns:
      {"layers": [...], "final_norm", "embed", "lm_head", "codes", "image_head", "vision", "vq"}.

    Raises:
      UserError: the mesh does not divide the heads or the feed-forward width; qwix is missing.
    """
    config = config.replace(scan_layers=False)
    if mesh is not None:
        _check_mesh(config, mesh)
    params = models.unstack_layers(params, config)
    model = models.JanusModel(config, policy)
    decoder = params["decoder"] if donate_params else dict(params["decoder"])
    put = _Placer(policy.compute, mesh, int8, on_cpu=platform in (None, "cpu"))
    head = params["image_head"]
    vision = {name: params[name] for name in ("siglip", "und_adaptor")}
    generation = {name: params[name] for name in ("gen_embed", "gen_adaptor")}
    codes = _code_table(model, jax.tree.map(jnp.asarray, load_leaves(generation)))
    load = load_leaves  # each where it is used: a lazy array lives no longer than that
    # The largest products first, while the device is empty: quantizing takes several times their size.
    return {
        "lm_head": put("lm_head", load(decoder["lm_head"]["kernel"]).T),
        "embed": put("embed", load(decoder["embed"]["embedding"])),
        "codes": put("codes", codes),
        "image_head": {
            "proj": put("proj", load(head["proj"]["kernel"]).T),
            "proj_bias": put("proj_bias", load(head["proj"]["bias"])),
            "head": put("head", load(head["head"]["kernel"]).T),
            "head_bias": put("head_bias", load(head["head"]["bias"])),
        },
        "vision": _whole(vision, policy.param, mesh),
        "vq": _whole(params["vq"], jnp.float32, mesh, "vq"),
        "final_norm": put("final_norm", load(decoder["final_norm"]["scale"])),
        "layers": [
            _layer(load(decoder.pop(f"layers_{i}")), config.decoder.kv_heads, put)
            for i in range(config.decoder.layers)
        ],
    }


def unfuse_params(
    weights: Weights, config: JanusConfig, policy: Policy, generation: models.Params
) -> models.Params:
    """The inverse of `fuse_params`: unrolled parameters, as host arrays in the dtypes that they are kept in.

    Args:
      weights: from `fuse_params`, not in int8.
      config: architecture.
      policy: as they were fused with.
      generation: "gen_embed" and "gen_adaptor", which `weights["codes"]` does not give back.
    """
    decoder = config.decoder

    def host(x: jax.Array) -> np.ndarray:
        x = np.asarray(x)
        return x.view(jnp.dtype("bfloat16")) if x.dtype == np.uint16 else x.astype(policy.compute)

    def dense(x: jax.Array) -> dict[str, np.ndarray]:
        return {"kernel": host(x).T}

    def layer(fused: dict[str, Any]) -> models.Params:
        qkv = host(fused["qkv"])
        groups = decoder.heads // decoder.kv_heads
        parts = {"q": qkv[:, :groups], "k": qkv[:, groups : groups + 1], "v": qkv[:, groups + 1 :]}
        attention = {
            f"{name}_proj": {"kernel": rearrange(x, "k g h d -> d (k g h)")}
            for name, x in parts.items()
        }
        gate, up = host(fused["gate_up"])
        return {
            "attn_norm": {"scale": host(fused["attn_norm"])},
            "attn": {**attention, "o_proj": dense(fused["o"])},
            "mlp_norm": {"scale": host(fused["mlp_norm"])},
            "mlp": {
                "gate_proj": {"kernel": gate.T},
                "up_proj": {"kernel": up.T},
                "down_proj": dense(fused["down"]),
            },
        }

    head = weights["image_head"]
    return {
        **jax.tree.map(np.asarray, weights["vision"]),
        **jax.tree.map(np.asarray, generation),
        "image_head": {
            "proj": {**dense(head["proj"]), "bias": host(head["proj_bias"])},
            "head": {**dense(head["head"]), "bias": host(head["head_bias"])},
        },
        "decoder": {
            **{f"layers_{i}": layer(fused) for i, fused in enumerate(weights["layers"])},
            "final_norm": {"scale": host(weights["final_norm"])},
            "embed": {"embedding": host(weights["embed"])},
            "lm_head": dense(weights["lm_head"]),
        },
        "vq": jax.tree.map(np.asarray, weights["vq"]),
    }


@partial(jax.jit, static_argnums=0)
def _code_table(model: models.JanusModel, params: models.Params) -> jax.Array:
    """Every image code behind its adaptor: [codebook_size, D]."""
    codes = jnp.arange(model.config.vq.codebook_size)
    return model.apply({"params": params}, codes, method="embed_codes")


def _layer(layer: models.Params, kv_heads: int, put: _Placer) -> dict[str, Any]:
    attn, mlp = layer["attn"], layer["mlp"]
    heads = lambda name: rearrange(
        attn[name]["kernel"], "d (k g h) -> k g h d", k=kv_heads, h=head_dim
    )
    head_dim = attn["k_proj"]["kernel"].shape[-1] // kv_heads
    concatenate = lambda parts, axis: jnp.concatenate([jnp.asarray(p) for p in parts], axis)
    return {
        "attn_norm": put("attn_norm", layer["attn_norm"]["scale"]),
        "qkv": put("qkv", concatenate([heads(f"{name}_proj") for name in "qkv"], 1)),
        "o": put("o", attn["o_proj"]["kernel"].T),  # key heads outermost in the inputs, too
        "mlp_norm": put("mlp_norm", layer["mlp_norm"]["scale"]),
        "gate_up": put(
            "gate_up",
            concatenate([mlp[f"{name}_proj"]["kernel"].T[None] for name in ("gate", "up")], 0),
        ),
        "down": put("down", mlp["down_proj"]["kernel"].T),
    }


class _Placer:
    """Casts, quantizes and places one weight, and waits for it: what it is made of is let go before the next."""

    def __init__(self, dtype: jnp.dtype, mesh: Mesh | None, int8: bool, on_cpu: bool):
        self._dtype, self._mesh, self._int8 = dtype, mesh, int8
        self._wide_heads = on_cpu and mesh is None

    def __call__(self, name: str, x: Any) -> Any:
        placed = self._place(name, x)
        return placed if isinstance(x, jax.core.Tracer) else jax.block_until_ready(placed)

    def _place(self, name: str, x: Any) -> Any:
        if self._int8 and name in _QUANTIZED:
            x = quantize(jnp.asarray(x), _QUANTIZED[name])
        else:
            x = jnp.asarray(x, self._dtype)
            if name in _HEADS and self._wide_heads and by_onednn(2, x.size):
                x = x.astype(jnp.float32)
        if name in _TABLES and x.dtype == jnp.bfloat16:
            x = jax.lax.bitcast_convert_type(x, jnp.uint16)
        if self._mesh is None:
            return x
        spec = SPECS.get(name, P())

        def place(leaf: jax.Array) -> jax.Array:  # the scale of an int8 weight has axes of size 1
            shards = self._mesh.shape["tensor"]
            axes = [a if n % shards == 0 else None for a, n in zip(spec, leaf.shape, strict=False)]
            return jax.device_put(leaf, NamedSharding(self._mesh, P(*axes)))

        return jax.tree.map(place, x)


def quantize(weight: jax.Array, inputs: int) -> Any:
    """int8 with one scale for each output; the last `inputs` axes are contracted (`matmul`).

    Raises:
      UserError: qwix is not installed.
    """
    try:
        import qwix
    except ImportError:
        raise UserError("int8 weights need qwix: pip install qwix") from None
    axes = range(weight.ndim - inputs)
    return qwix.quantize(weight.astype(jnp.float32), jnp.int8, channelwise_axes=axes)


def _whole(params: Any, dtype: jnp.dtype, mesh: Mesh | None, prefix: str | None = None) -> Any:
    """Sub-modules that keep their Flax layout, sharded by the table of all parameters."""
    params = jax.tree.map(lambda x: jnp.asarray(load_leaves(x), dtype), params)
    if mesh is None:
        return params
    if prefix is not None:
        return jax.device_put(params, replicated(mesh))
    return jax.device_put(params, param_shardings(params, mesh))


def _check_mesh(config: JanusConfig, mesh: Mesh) -> None:
    shards = mesh.shape["tensor"]
    for name in ("kv_heads", "ffw"):
        size = getattr(config.decoder, name)
        if size % shards:
            raise UserError(f"mesh: tensor={shards} does not divide {name}={size} of {config.name}")
