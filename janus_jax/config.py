"""The architecture of Janus as frozen dataclasses, the released presets and the dtype policy.

Only what fixes the shape of the network lives here: no paths and nothing that belongs to a run.
Sources: the released `config.json` files (deepseek-ai/Janus-1.3B, Janus-Pro-1B, Janus-Pro-7B) and,
for what those leave to code, `janus/models/siglip_vit.py`, `janus/models/vq_model.py` of the
official repository and the defaults of `transformers.LlamaConfig`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp

from janus_jax.errors import UserError, nearest
from janus_jax.untrusted import printable, shown

CONV_IMPLEMENTATIONS = ("lax", "im2col")
FLOAT_DTYPES = ("float32", "bfloat16", "float16")

# Far above any model that is known, and below what only a damaged or hostile file asks for: with these
# nothing that is computed from a config alone takes long.
_LIMITS: dict[str, float] = {
    "image_size": 2**14,
    "patch_size": 2**10,
    "width": 2**17,
    "layers": 2**10,
    "heads": 2**12,
    "mlp_ratio": 2**7,
    "codebook_size": 2**24,
    "codebook_dim": 2**16,
    "z_channels": 2**16,
    "ch": 2**16,
    "num_res_blocks": 2**6,
    "norm_groups": 2**16,
    "vocab_size": 2**24,
    "ffw": 2**20,
    "kv_heads": 2**12,
    "head_dim": 2**14,
    "rope_theta": 1e15,
    "norm_eps": 1.0,
    "max_position": 2**30,
}
_MAX_LEVELS, _MAX_MULTIPLIER, _MAX_RES_BLOCKS = 12, 2**10, 2**8
_MAX_TOKENS = 2**16  # of one picture
_MAX_NAME = 255


class _Config:
    """Conversion to and from plain dicts, shared by all configs below."""

    def to_dict(self) -> dict[str, Any]:
        """This config as JSON-ready nested dicts (tuples become lists)."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config that `to_dict` wrote.

        Raises:
          UserError: a field is unknown, missing, or of the wrong type; the message names it.
        """
        return _build(cls, values, cls.__name__)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; checked like a new one."""
        return dataclasses.replace(self, **changes)


def _plain(value: Any) -> Any:
    if isinstance(value, _Config):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be a mapping of fields, not {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            close = nearest(str(name)[:_MAX_NAME], fields)
            raise UserError(f"{where} has no field {shown(name)}.{close}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where} lacks the field(s) {', '.join(missing)}")
    hints = typing.get_type_hints(cls)
    return cls(**{k: _convert(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    if isinstance(kind, types.GenericAlias):  # tuple[int, ...]
        if not isinstance(value, list | tuple):
            raise UserError(f"{where} must be a list of integers, not {shown(value)}")
        return tuple(_convert(int, item, where) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{where} must be of type {kind.__name__}, not {shown(value)}")
    return value


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _require_within_limits(config: Any) -> None:
    """Every field that has a limit is positive and not above it."""
    for field in dataclasses.fields(config):
        if field.name in _LIMITS:
            value, limit = getattr(config, field.name), _LIMITS[field.name]
            where = f"{type(config).__name__}.{field.name}"
            _require(value > 0, f"{where} must be positive, not {shown(value)}")
            _require(value <= limit, f"{where} must be at most {limit}, not {shown(value)}")


def _require_few_tokens(config: Any, count: int) -> None:
    _require(
        0 < count <= _MAX_TOKENS,
        f"{type(config).__name__}.image_size {config.image_size} makes {count} tokens of a picture; "
        f"between 1 and {_MAX_TOKENS} are supported",
    )


@dataclasses.dataclass(frozen=True)
class SigLIPConfig(_Config):
    """Understanding encoder: a pre-norm ViT without class token.

    Attributes:
      image_size: side of the square input in pixels.
      patch_size: side of one patch in pixels; divides `image_size`.
      width: token width D.
      layers: number of blocks.
      heads: attention heads; divides `width`.
      mlp_ratio: feed-forward width over `width`.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: int = 4

    def __post_init__(self):
        _require_within_limits(self)
        _require(
            self.image_size % self.patch_size == 0,
            f"SigLIPConfig.patch_size {self.patch_size} does not divide image_size "
            f"{self.image_size}",
        )
        _require(
            self.width % self.heads == 0,
            f"SigLIPConfig.heads {self.heads} does not divide width {self.width}",
        )
        _require_few_tokens(self, self.num_patches)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """P, the number of image tokens."""
        return self.grid**2


@dataclasses.dataclass(frozen=True)
class VQConfig(_Config):
    """Image tokenizer: the LlamaGen VQ-GAN (official `VQ-16` by default).

    Attributes:
      image_size: side of the square input in pixels.
      codebook_size: number of codes.
      codebook_dim: width of one code vector.
      z_channels: channels between the encoder or decoder and the 1x1 convolutions at the codebook.
      ch: base channels, multiplied per level by `ch_mult`.
      ch_mult: one multiplier a resolution level, highest resolution first.
      num_res_blocks: residual blocks a level in the encoder; the decoder has one more.
      norm_groups: groups of every GroupNorm; divides every channel count.
      patch_size: space-to-depth factor before the first convolution, undone after the last one.
        1 is the official model; more moves work from wide images to wide channels, for CPUs.
      conv_impl: how 3x3 convolutions are computed, "lax" or "im2col": the same numbers and
        parameters. im2col trains faster on CPUs.
    """

    image_size: int
    codebook_size: int = 16384
    codebook_dim: int = 8
    z_channels: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    norm_groups: int = 32
    patch_size: int = 1
    conv_impl: str = "lax"

    def __post_init__(self):
        _require_within_limits(self)
        levels = len(self.ch_mult)
        _require(
            0 < levels <= _MAX_LEVELS and all(0 < m <= _MAX_MULTIPLIER for m in self.ch_mult),
            f"VQConfig.ch_mult must hold 1 to {_MAX_LEVELS} positive integers up to {_MAX_MULTIPLIER}, "
            f"not {shown(self.ch_mult)}",
        )
        _require(
            levels * self.num_res_blocks <= _MAX_RES_BLOCKS,
            f"VQConfig.num_res_blocks {self.num_res_blocks} at {levels} levels are more than "
            f"{_MAX_RES_BLOCKS} blocks",
        )
        _require(
            self.image_size % self.downsample == 0,
            f"VQConfig.image_size {self.image_size} is not a multiple of the downsampling "
            f"{self.downsample}",
        )
        for channels in (self.ch, *(self.ch * m for m in self.ch_mult)):
            _require(
                channels % self.norm_groups == 0,
                f"VQConfig.norm_groups {self.norm_groups} does not divide {channels} channels",
            )
        _require(
            self.conv_impl in CONV_IMPLEMENTATIONS,
            f"VQConfig.conv_impl must be one of {CONV_IMPLEMENTATIONS}, not {shown(self.conv_impl)}",
        )
        _require_few_tokens(self, self.num_codes)

    @property
    def downsample(self) -> int:
        """Image pixels along one side of a code."""
        return self.patch_size * 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> int:
        """Codes along one side."""
        return self.image_size // self.downsample

    @property
    def num_codes(self) -> int:
        """Codes in one image, row-major."""
        return self.grid**2


@dataclasses.dataclass(frozen=True)
class DecoderConfig(_Config):
    """Language model: a LLaMA decoder with untied input and output embeddings.

    Attributes:
      vocab_size: rows of the embedding V (may exceed the tokenizer's length).
      width: model width D.
      ffw: feed-forward width F.
      layers: number of blocks L.
      heads: query heads N.
      kv_heads: key and value heads K; divides `heads`.
      head_dim: head size H, even.
      rope_theta: base of the rotary frequencies.
      norm_eps: epsilon of every RMSNorm.
      max_position: positions the model was made for.
    """

    vocab_size: int
    width: int
    ffw: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    max_position: int = 16384

    def __post_init__(self):
        _require_within_limits(self)
        _require(
            self.heads % self.kv_heads == 0,
            f"DecoderConfig.kv_heads {self.kv_heads} does not divide heads {self.heads}",
        )
        _require(
            self.head_dim % 2 == 0,
            f"DecoderConfig.head_dim {self.head_dim} must be even for rotary positions",
        )


@dataclasses.dataclass(frozen=True)
class JanusConfig(_Config):
    """The whole model.

    Attributes:
      name: what to call it in messages and saved files.
      siglip: understanding encoder.
      vq: image tokenizer; its `codebook_size` is also the width of the image head.
      decoder: language model.
      scan_layers: whether SigLIP and decoder blocks are scanned with stacked parameters (training)
        or unrolled (sampling); `models.stack_layers` and `unstack_layers` convert parameters.
    """

    name: str
    siglip: SigLIPConfig
    vq: VQConfig
    decoder: DecoderConfig
    scan_layers: bool = False

    def __post_init__(self):
        _require(
            self.name == printable(self.name, _MAX_NAME),
            f"JanusConfig.name must have at most {_MAX_NAME} printable letters, not {shown(self.name)}",
        )

    @property
    def least_arrays(self) -> int:
        """Arrays that the blocks have at least when they are unrolled, in any format."""
        vq = len(self.vq.ch_mult) * (2 * self.vq.num_res_blocks + 1)
        return 9 * self.decoder.layers + 12 * self.siglip.layers + 8 * vq


@dataclasses.dataclass(frozen=True)
class Policy(_Config):
    """The one place that says which dtype is used where.

    Parameters are stored in `param_dtype` and cast to `compute_dtype` where they are used. Always
    in float32, whatever the policy: softmax, normalisation statistics, rotary angles, logits, and
    the whole image tokenizer, whose codes are decided by near ties.
    """

    param_dtype: str = "float32"
    compute_dtype: str = "float32"

    def __post_init__(self):
        for field in ("param_dtype", "compute_dtype"):
            value = getattr(self, field)
            _require(
                value in FLOAT_DTYPES,
                f"Policy.{field} must be one of {FLOAT_DTYPES}, not {value!r}",
            )

    @classmethod
    def auto(cls, dtype: str = "auto") -> Self:
        """Parameters and arithmetic in one dtype; "auto" is float32 on a CPU and bfloat16 elsewhere.

        Raises:
          UserError: another dtype than "auto", "float32" or "bfloat16", or JAX finds no device.
        """
        choices = ("auto", "float32", "bfloat16")
        if not isinstance(dtype, str) or dtype not in choices:
            raise UserError(f"dtype must be one of {', '.join(choices)}, not {shown(dtype)}")
        try:
            backend = jax.default_backend()
        except RuntimeError as error:  # such as JAX_PLATFORMS=cuda without a GPU
            reason = str(error).splitlines()[0]
            raise UserError(
                f"no device to compute on: {reason} (JAX_PLATFORMS=cpu works)"
            ) from error
        if dtype == "auto":
            dtype = "float32" if backend == "cpu" else "bfloat16"
        return cls(dtype, dtype)

    @property
    def param(self) -> jnp.dtype:
        """`param_dtype` as a dtype."""
        return jnp.dtype(self.param_dtype)

    @property
    def compute(self) -> jnp.dtype:
        """`compute_dtype` as a dtype."""
        return jnp.dtype(self.compute_dtype)


SIGLIP_LARGE_384 = SigLIPConfig(image_size=384, patch_size=16, width=1024, layers=24, heads=16)
VQ_16 = VQConfig(image_size=384)
_DECODER_1B = DecoderConfig(
    vocab_size=102400, width=2048, ffw=5632, layers=24, heads=16, kv_heads=16, head_dim=128
)
_DECODER_7B = DecoderConfig(
    vocab_size=102400, width=4096, ffw=11008, layers=30, heads=32, kv_heads=32, head_dim=128
)

JANUS_1_3B = JanusConfig("janus-1.3b", SIGLIP_LARGE_384, VQ_16, _DECODER_1B, scan_layers=True)
JANUS_PRO_1B = JanusConfig("janus-pro-1b", SIGLIP_LARGE_384, VQ_16, _DECODER_1B, scan_layers=True)
JANUS_PRO_7B = JanusConfig("janus-pro-7b", SIGLIP_LARGE_384, VQ_16, _DECODER_7B, scan_layers=True)

# Ours, for one accelerator: 128-pixel images, 64 understanding tokens, 16x16 codes.
JANUS_SMALL = JanusConfig(
    "janus-small",
    SigLIPConfig(image_size=128, patch_size=16, width=384, layers=8, heads=6),
    VQConfig(image_size=128, codebook_size=4096, z_channels=128, ch=64, ch_mult=(1, 2, 2, 4)),
    DecoderConfig(
        vocab_size=8192,
        width=512,
        ffw=1408,
        layers=8,
        heads=8,
        kv_heads=8,
        head_dim=64,
        max_position=2048,
    ),
    scan_layers=True,
)

# Ours, for two CPU cores: 48-pixel images, 9 understanding tokens, 6x6 codes.
JANUS_TINY = JanusConfig(
    "janus-tiny",
    SigLIPConfig(image_size=48, patch_size=16, width=128, layers=2, heads=4),
    VQConfig(
        image_size=48,
        codebook_size=1024,
        z_channels=64,
        ch=64,
        ch_mult=(1,),
        num_res_blocks=1,
        norm_groups=8,
        patch_size=8,
    ),
    DecoderConfig(
        vocab_size=192,
        width=128,
        ffw=344,
        layers=4,
        heads=4,
        kv_heads=4,
        head_dim=32,
        max_position=256,
    ),
)

PRESETS: dict[str, JanusConfig] = {
    config.name: config
    for config in (JANUS_1_3B, JANUS_PRO_1B, JANUS_PRO_7B, JANUS_SMALL, JANUS_TINY)
}
