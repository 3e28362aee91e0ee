"""The one table between the official PyTorch names and ours.

Each row names a torch module, the place of its parameters in our (unrolled) tree, and the kind of
module, which fixes the tensors it has and how their layouts differ. `{i}` and `{j}` stand for
indices. Source of the names: `janus/models/` of deepseek-ai/Janus and the state dicts of the
releases.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np
from einops import rearrange


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor is laid out: torch pattern and our pattern, in einops words."""

    torch: str
    ours: str

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        """A view of the torch array in our layout."""
        return rearrange(value, f"{self.torch} -> {self.ours}")

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in torch of a tensor that has `shape` in our layout."""
        sizes = dict(zip(self.ours.split(), shape, strict=True))
        return tuple(sizes.get(axis, 1) for axis in self.torch.split())

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        return rearrange(value, f"{self.ours} -> {self.torch}")


VECTOR = Layout("c", "c")
TABLE = Layout("v d", "v d")
LINEAR = Layout("o i", "i o")
CONV = Layout("o i h w", "h w i o")
POSITIONS = Layout("1 p d", "p d")

# Kind of torch module -> {torch tensor: (our tensor, layout)}. "" is a bare parameter.
KINDS: dict[str, dict[str, tuple[str, Layout]]] = {
    "linear": {"weight": ("kernel", LINEAR), "bias": ("bias", VECTOR)},
    "projection": {"weight": ("kernel", LINEAR)},  # a linear layer without bias
    "conv": {"weight": ("kernel", CONV), "bias": ("bias", VECTOR)},
    "norm": {"weight": ("scale", VECTOR), "bias": ("bias", VECTOR)},
    "rms_norm": {"weight": ("scale", VECTOR)},
    "embedding": {"weight": ("embedding", TABLE)},
    "positions": {"": ("", POSITIONS)},
}

_TOWER = "vision_model.vision_tower"
_LAYER = "language_model.model.layers.{i}"


def _vq_rows(torch: str, ours: str) -> list[tuple[str, str, str]]:
    """Rows of the VQ encoder or decoder, which have the same parts."""

    def res(torch: str, ours: str) -> list[tuple[str, str, str]]:
        return [
            (f"{torch}.norm1", f"{ours}/norm1", "norm"),
            (f"{torch}.conv1", f"{ours}/conv1", "conv"),
            (f"{torch}.norm2", f"{ours}/norm2", "norm"),
            (f"{torch}.conv2", f"{ours}/conv2", "conv"),
        ]

    def attention(torch: str, ours: str) -> list[tuple[str, str, str]]:
        return [
            (f"{torch}.norm", f"{ours}/norm", "norm"),
            (f"{torch}.q", f"{ours}/q", "conv"),
            (f"{torch}.k", f"{ours}/k", "conv"),
            (f"{torch}.v", f"{ours}/v", "conv"),
            (f"{torch}.proj_out", f"{ours}/proj", "conv"),
        ]

    level, our_level = f"{torch}.conv_blocks.{{i}}", f"{ours}/level_{{i}}"
    return [
        (f"{torch}.conv_in", f"{ours}/conv_in", "conv"),
        *res(f"{level}.res.{{j}}", f"{our_level}/res_{{j}}"),
        (f"{level}.res.{{j}}.nin_shortcut", f"{our_level}/res_{{j}}/shortcut", "conv"),
        *attention(f"{level}.attn.{{j}}", f"{our_level}/attn_{{j}}"),
        (f"{level}.downsample.conv", f"{our_level}/downsample", "conv"),
        (f"{level}.upsample.conv", f"{our_level}/upsample", "conv"),
        *res(f"{torch}.mid.0", f"{ours}/mid_0"),
        *attention(f"{torch}.mid.1", f"{ours}/mid_1"),
        *res(f"{torch}.mid.2", f"{ours}/mid_2"),
        (f"{torch}.norm_out", f"{ours}/norm_out", "norm"),
        (f"{torch}.conv_out", f"{ours}/conv_out", "conv"),
    ]


# (torch module, our module, kind)
MODULES: tuple[tuple[str, str, str], ...] = (
    (f"{_TOWER}.patch_embed.proj", "siglip/patch_embed", "conv"),
    (f"{_TOWER}.pos_embed", "siglip/pos_embed", "positions"),
    (f"{_TOWER}.blocks.{{i}}.norm1", "siglip/blocks_{i}/norm1", "norm"),
    (f"{_TOWER}.blocks.{{i}}.attn.qkv", "siglip/blocks_{i}/qkv", "linear"),
    (f"{_TOWER}.blocks.{{i}}.attn.proj", "siglip/blocks_{i}/proj", "linear"),
    (f"{_TOWER}.blocks.{{i}}.norm2", "siglip/blocks_{i}/norm2", "norm"),
    (f"{_TOWER}.blocks.{{i}}.mlp.fc1", "siglip/blocks_{i}/fc1", "linear"),
    (f"{_TOWER}.blocks.{{i}}.mlp.fc2", "siglip/blocks_{i}/fc2", "linear"),
    (f"{_TOWER}.norm", "siglip/norm", "norm"),
    ("aligner.layers.0", "und_adaptor/fc1", "linear"),
    ("aligner.layers.2", "und_adaptor/fc2", "linear"),
    ("gen_embed", "gen_embed", "embedding"),
    ("gen_aligner.layers.0", "gen_adaptor/fc1", "linear"),
    ("gen_aligner.layers.2", "gen_adaptor/fc2", "linear"),
    ("gen_head.output_mlp_projector", "image_head/proj", "linear"),
    ("gen_head.vision_head", "image_head/head", "linear"),
    ("language_model.model.embed_tokens", "decoder/embed", "embedding"),
    (f"{_LAYER}.input_layernorm", "decoder/layers_{i}/attn_norm", "rms_norm"),
    (f"{_LAYER}.self_attn.q_proj", "decoder/layers_{i}/attn/q_proj", "projection"),
    (f"{_LAYER}.self_attn.k_proj", "decoder/layers_{i}/attn/k_proj", "projection"),
    (f"{_LAYER}.self_attn.v_proj", "decoder/layers_{i}/attn/v_proj", "projection"),
    (f"{_LAYER}.self_attn.o_proj", "decoder/layers_{i}/attn/o_proj", "projection"),
    (f"{_LAYER}.post_attention_layernorm", "decoder/layers_{i}/mlp_norm", "rms_norm"),
    (f"{_LAYER}.mlp.gate_proj", "decoder/layers_{i}/mlp/gate_proj", "projection"),
    (f"{_LAYER}.mlp.up_proj", "decoder/layers_{i}/mlp/up_proj", "projection"),
    (f"{_LAYER}.mlp.down_proj", "decoder/layers_{i}/mlp/down_proj", "projection"),
    ("language_model.model.norm", "decoder/final_norm", "rms_norm"),
    ("language_model.lm_head", "decoder/lm_head", "projection"),
    *_vq_rows("gen_vision_model.encoder", "vq/encoder"),
    *_vq_rows("gen_vision_model.decoder", "vq/decoder"),
    ("gen_vision_model.quantize.embedding", "vq/quantize", "embedding"),
    ("gen_vision_model.quant_conv", "vq/quant_conv", "conv"),
    ("gen_vision_model.post_quant_conv", "vq/post_quant_conv", "conv"),
)

# Stored in the releases, used by nothing: SigLIP's pooling head and a training statistic.
DROPPED = ("vision_model.vision_tower.attn_pool.", "gen_vision_model.quantize.codebook_used")


def is_dropped(official: str) -> bool:
    """Whether this tensor of a released checkpoint is ignored on purpose."""
    return official.startswith(DROPPED)


def to_ours(official: str) -> tuple[str, Layout] | None:
    """Our path ("decoder/layers_3/attn/q_proj/kernel") and the layout; None for an unknown name."""
    return _lookup(official, _tables()[0])


def to_official(path: str) -> tuple[str, Layout] | None:
    """The torch name of one of our (unrolled) paths, and the layout; None for an unknown path."""
    return _lookup(path, _tables()[1])


_Row = tuple[re.Pattern[str], str, Layout]


def _lookup(name: str, rows: list[_Row]) -> tuple[str, Layout] | None:
    for pattern, template, layout in rows:
        if match := pattern.fullmatch(name):
            return template.format(**match.groupdict()), layout
    return None


@functools.cache
def _tables() -> tuple[list[_Row], list[_Row]]:
    forward, backward = [], []
    for torch, ours, kind in MODULES:
        for torch_leaf, (our_leaf, layout) in KINDS[kind].items():
            official = f"{torch}.{torch_leaf}" if torch_leaf else torch
            path = f"{ours}/{our_leaf}" if our_leaf else ours
            forward.append((_pattern(official), path, layout))
            backward.append((_pattern(path), official, layout))
    return forward, backward


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(template)))
