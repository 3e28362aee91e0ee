"""The network: Flax modules as pure functions of (params, inputs)."""

from janus_jax.models.adaptor import Adaptor, ImageHead
from janus_jax.models.attention import causal_mask, segment_mask
from janus_jax.models.blocks import REMAT
from janus_jax.models.decoder import Cache, Decoder, init_cache
from janus_jax.models.init import Params, init_params
from janus_jax.models.janus import JanusModel
from janus_jax.models.layout import Layout
from janus_jax.models.merging import merge_features
from janus_jax.models.packed_attention import BACK_ENDS, Segments, packed_attention
from janus_jax.models.siglip import SigLIP
from janus_jax.models.stacking import stack_layers, unstack_layers
from janus_jax.models.vqgan import VQModel

__all__ = [
    "BACK_ENDS",
    "REMAT",
    "Adaptor",
    "Cache",
    "Decoder",
    "ImageHead",
    "JanusModel",
    "Layout",
    "Params",
    "Segments",
    "SigLIP",
    "VQModel",
    "causal_mask",
    "init_cache",
    "init_params",
    "merge_features",
    "packed_attention",
    "segment_mask",
    "stack_layers",
    "unstack_layers",
]
