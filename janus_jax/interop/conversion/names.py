"""The one table between the PyTorch names and the native ones, for both formats that exist.

Each row names a torch module, the place of its parameters in the native (unrolled) tree, and the kind of
module, which fixes the tensors it has and how their layouts differ. `{i}` and `{j}` stand for
indices. Sources of the names: `janus/models/` of deepseek-ai/Janus and the state dicts of the releases
(OFFICIAL); `transformers.models.janus.modeling_janus` and its conversion script (HF).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
from einops import rearrange


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor is laid out: the axes in torch and in the native tree, in einops words."""

    torch: str
    native: str

    def to_native(self, value: np.ndarray) -> np.ndarray:
        """A view of the torch array in the native layout."""
        return rearrange(value, f"{self.torch} -> {self.native}")

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in torch of a tensor that has `shape` in the native layout."""
        sizes = dict(zip(self.native.split(), shape, strict=True))
        return tuple(sizes.get(axis, 1) for axis in self.torch.split())

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        """The inverse of `to_native`."""
        return rearrange(value, f"{self.native} -> {self.torch}")


VECTOR = Layout("c", "c")
TABLE = Layout("v d", "v d")
LINEAR = Layout("o i", "i o")
CONV = Layout("o i h w", "h w i o")
POSITIONS = Layout("1 p d", "p d")
POSITION_TABLE = Layout("p d", "p d")

# Kind of torch module -> {torch tensor: (the native tensor, layout)}. "" is a bare parameter.
KINDS: dict[str, dict[str, tuple[str, Layout]]] = {
    "linear": {"weight": ("kernel", LINEAR), "bias": ("bias", VECTOR)},
    "projection": {"weight": ("kernel", LINEAR)},  # a linear layer without bias
    "conv": {"weight": ("kernel", CONV), "bias": ("bias", VECTOR)},
    "norm": {"weight": ("scale", VECTOR), "bias": ("bias", VECTOR)},
    "rms_norm": {"weight": ("scale", VECTOR)},
    "embedding": {"weight": ("embedding", TABLE)},
    "positions": {"": ("", POSITIONS)},
    "position_table": {"weight": ("", POSITION_TABLE)},
}

WHOLE = (0, 1)


@dataclasses.dataclass(frozen=True)
class Slot:
    """The other side of one tensor.

    Attributes:
      name: torch name, or path in the native tree such as "decoder/layers_3/attn/q_proj/kernel".
      layout: how the torch tensor lies in the native array.
      part: (k, n): the torch tensor is the k-th of n equal parts of the native array, along its last axis.
    """

    name: str
    layout: Layout
    part: tuple[int, int] = WHOLE

    def cut(self, value: np.ndarray) -> np.ndarray:
        """The part of the native array that this torch tensor holds, in the native layout."""
        return np.split(value, self.part[1], axis=-1)[self.part[0]]

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the torch tensor for a native array of `shape`."""
        return self.layout.torch_shape((*shape[:-1], shape[-1] // self.part[1]))


# (torch module, the native module, kind[, part])
Rows = tuple[tuple, ...]

_TOWER = "vision_model.vision_tower"


@dataclasses.dataclass(frozen=True)
class _VQNames:
    """What the two formats call the same parts of the VQ encoder and decoder."""

    level: str
    res: str
    mid: tuple[str, str, str]


_OFFICIAL_VQ = _VQNames("conv_blocks.{i}", "res.{j}", ("mid.0", "mid.1", "mid.2"))
_HF_MID = ("mid.block_1", "mid.attn_1", "mid.block_2")


def _vq_rows(torch: str, native: str, names: _VQNames) -> Rows:
    """Rows of the VQ encoder or decoder, which have the same parts."""

    def res(torch: str, native: str) -> list[tuple[str, str, str]]:
        return [
            (f"{torch}.norm1", f"{native}/norm1", "norm"),
            (f"{torch}.conv1", f"{native}/conv1", "conv"),
            (f"{torch}.norm2", f"{native}/norm2", "norm"),
            (f"{torch}.conv2", f"{native}/conv2", "conv"),
        ]

    def attention(torch: str, native: str) -> list[tuple[str, str, str]]:
        return [
            (f"{torch}.norm", f"{native}/norm", "norm"),
            (f"{torch}.q", f"{native}/q", "conv"),
            (f"{torch}.k", f"{native}/k", "conv"),
            (f"{torch}.v", f"{native}/v", "conv"),
            (f"{torch}.proj_out", f"{native}/proj", "conv"),
        ]

    level, native_level = f"{torch}.{names.level}", f"{native}/level_{{i}}"
    first, middle, last = (f"{torch}.{name}" for name in names.mid)
    return (
        (f"{torch}.conv_in", f"{native}/conv_in", "conv"),
        *res(f"{level}.{names.res}", f"{native_level}/res_{{j}}"),
        (f"{level}.{names.res}.nin_shortcut", f"{native_level}/res_{{j}}/shortcut", "conv"),
        *attention(f"{level}.attn.{{j}}", f"{native_level}/attn_{{j}}"),
        (f"{level}.downsample.conv", f"{native_level}/downsample", "conv"),
        (f"{level}.upsample.conv", f"{native_level}/upsample", "conv"),
        *res(first, f"{native}/mid_0"),
        *attention(middle, f"{native}/mid_1"),
        *res(last, f"{native}/mid_2"),
        (f"{torch}.norm_out", f"{native}/norm_out", "norm"),
        (f"{torch}.conv_out", f"{native}/conv_out", "conv"),
    )


def _decoder_rows(model: str, head: str) -> Rows:
    """Rows of the language model, whose parts both formats take from transformers' Llama."""
    layer, native = f"{model}.layers.{{i}}", "decoder/layers_{i}"
    return (
        (f"{model}.embed_tokens", "decoder/embed", "embedding"),
        (f"{layer}.input_layernorm", f"{native}/attn_norm", "rms_norm"),
        *(
            (f"{layer}.self_attn.{p}_proj", f"{native}/attn/{p}_proj", "projection")
            for p in ("q", "k", "v", "o")
        ),
        (f"{layer}.post_attention_layernorm", f"{native}/mlp_norm", "rms_norm"),
        *(
            (f"{layer}.mlp.{p}_proj", f"{native}/mlp/{p}_proj", "projection")
            for p in ("gate", "up", "down")
        ),
        (f"{model}.norm", "decoder/final_norm", "rms_norm"),
        (head, "decoder/lm_head", "projection"),
    )


OFFICIAL_ROWS: Rows = (
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
    *_decoder_rows("language_model.model", "language_model.lm_head"),
    *_vq_rows("gen_vision_model.encoder", "vq/encoder", _OFFICIAL_VQ),
    *_vq_rows("gen_vision_model.decoder", "vq/decoder", _OFFICIAL_VQ),
    ("gen_vision_model.quantize.embedding", "vq/quantize", "embedding"),
    ("gen_vision_model.quant_conv", "vq/quant_conv", "conv"),
    ("gen_vision_model.post_quant_conv", "vq/post_quant_conv", "conv"),
)

_HF_BLOCK, _BLOCK = "model.vision_model.encoder.layers.{i}", "siglip/blocks_{i}"
HF_ROWS: Rows = (
    ("model.vision_model.embeddings.patch_embedding", "siglip/patch_embed", "conv"),
    ("model.vision_model.embeddings.position_embedding", "siglip/pos_embed", "position_table"),
    (f"{_HF_BLOCK}.layer_norm1", f"{_BLOCK}/norm1", "norm"),
    *(
        (f"{_HF_BLOCK}.self_attn.{p}_proj", f"{_BLOCK}/qkv", "linear", (k, 3))
        for k, p in enumerate("qkv")
    ),
    (f"{_HF_BLOCK}.self_attn.projection_layer", f"{_BLOCK}/proj", "linear"),
    (f"{_HF_BLOCK}.layer_norm2", f"{_BLOCK}/norm2", "norm"),
    (f"{_HF_BLOCK}.mlp.fc1", f"{_BLOCK}/fc1", "linear"),
    (f"{_HF_BLOCK}.mlp.fc2", f"{_BLOCK}/fc2", "linear"),
    ("model.vision_model.post_layernorm", "siglip/norm", "norm"),
    ("model.aligner.fc1", "und_adaptor/fc1", "linear"),
    ("model.aligner.hidden_layers.0", "und_adaptor/fc2", "linear"),
    ("model.generation_embeddings", "gen_embed", "embedding"),
    ("model.generation_aligner.fc1", "gen_adaptor/fc1", "linear"),
    ("model.generation_aligner.hidden_layers.0", "gen_adaptor/fc2", "linear"),
    ("model.generation_head.proj_out", "image_head/proj", "linear"),
    ("model.generation_head.vision_head", "image_head/head", "linear"),
    *_decoder_rows("model.language_model", "lm_head"),
    *_vq_rows("model.vqmodel.encoder", "vq/encoder", _VQNames("down.{i}", "block.{j}", _HF_MID)),
    *_vq_rows("model.vqmodel.decoder", "vq/decoder", _VQNames("up.{i}", "block.{j}", _HF_MID)),
    ("model.vqmodel.quantize.embedding", "vq/quantize", "embedding"),
    ("model.vqmodel.quant_conv", "vq/quant_conv", "conv"),
    ("model.vqmodel.post_quant_conv", "vq/post_quant_conv", "conv"),
)


def _old_hf(name: str) -> str:
    """Names from before transformers moved everything under `model.`."""
    if name.startswith(("model.", "lm_head.")):
        return name
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return f"model.{name.replace('language_model.model.', 'language_model.', 1)}"


# Parts of a name that wrappers put anywhere, and that no name of Janus has: DistributedDataParallel,
# torch.compile, FSDP, activation checkpointing, Lightning Fabric.
_WRAPPERS = frozenset(
    (
        *("module", "_orig_mod", "_fsdp_wrapped_module"),
        *("_checkpoint_wrapped_module", "_forward_module"),
    )
)
# Last part of the names of what is computed, not learnt, and stored by some tools all the same.
_BUFFERS = frozenset(
    (
        *("position_ids", "num_batches_tracked", "inv_freq", "original_inv_freq"),
        *("cos_cached", "sin_cached"),
    )
)


def _unwrapped(name: str) -> str:
    """A name without the parts that wrappers put there."""
    parts = name.split(".")
    return name if _WRAPPERS.isdisjoint(parts) else ".".join(p for p in parts if p not in _WRAPPERS)


def is_buffer(name: str) -> bool:
    """Whether a tensor is one that is computed anew instead of read, of whatever dtype it is."""
    return name.rsplit(".", 1)[-1] in _BUFFERS


class NameTable:
    """The bijection between one format's tensors and the native arrays.

    Names are read with or without the parts that wrappers add to them, such as `module.`.

    Args:
      key: "official" or "hf".
      rows: the table.
      dropped: prefixes of tensors that are stored and used by nothing.
      rename: maps older spellings of a name to the one in `rows`.
    """

    def __init__(
        self,
        key: str,
        rows: Rows,
        dropped: tuple[str, ...] = (),
        rename: Callable[[str], str] = lambda name: name,
    ):
        self.key, self._dropped, self._rename = key, dropped, rename
        self._to_native: list[tuple[re.Pattern[str], Slot]] = []
        self._to_torch: list[tuple[re.Pattern[str], Slot]] = []
        for torch, native, kind, *part in rows:
            for torch_leaf, (native_leaf, layout) in KINDS[kind].items():
                name = f"{torch}.{torch_leaf}" if torch_leaf else torch
                path = f"{native}/{native_leaf}" if native_leaf else native
                self._to_native.append((_pattern(name), Slot(path, layout, *part)))
                self._to_torch.append((_pattern(path), Slot(name, layout, *part)))

    def is_dropped(self, name: str) -> bool:
        """Whether this tensor is ignored on purpose."""
        return is_buffer(name) or _unwrapped(name).startswith(self._dropped)

    def to_native(self, name: str) -> Slot | None:
        """Where a torch tensor belongs in the native tree; None for an unknown name."""
        found = _lookup(self._rename(_unwrapped(name)), self._to_native)
        return found[0] if found else None

    def to_torch(self, path: str) -> list[Slot]:
        """The torch tensors that make up one of the native (unrolled) arrays, in order of their parts."""
        return sorted(_lookup(path, self._to_torch), key=lambda slot: slot.part)


def _lookup(name: str, rows: list[tuple[re.Pattern[str], Slot]]) -> list[Slot]:
    return [
        dataclasses.replace(slot, name=slot.name.format(**match.groupdict()))
        for pattern, slot in rows
        if (match := pattern.fullmatch(name))
    ]


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>0|[1-9]\\d*)", re.escape(template)))


# Dropped: SigLIP's pooling head and a training statistic.
OFFICIAL = NameTable(
    "official",
    OFFICIAL_ROWS,
    dropped=(f"{_TOWER}.attn_pool.", "gen_vision_model.quantize.codebook_used"),
)
HF = NameTable("hf", HF_ROWS, rename=_old_hf)
TABLES = {table.key: table for table in (OFFICIAL, HF)}
