"""Data: sources of examples -> sequences -> mixture by weight -> packed batches, on Grain."""

from janus_jax.data.encode import (
    TOO_LONG,
    PairEncoder,
    PictureEncoder,
    SequenceEncoder,
    SequenceTooLong,
)
from janus_jax.data.examples import (
    STAGE_0_TASKS,
    TASKS,
    Example,
    Generation,
    Picture,
    Rejected,
    Source,
    Text,
    Understanding,
)
from janus_jax.data.mixture import WeightedSource, mixed_batches, source_seed, unpacked_batches
from janus_jax.data.packing import COUNTED_BY, PackedShape, pack
from janus_jax.data.registry import SOURCES, TOKENIZERS, make_source
from janus_jax.data.streams import stream_batches, streams_of

__all__ = [
    "COUNTED_BY",
    "SOURCES",
    "STAGE_0_TASKS",
    "TASKS",
    "TOKENIZERS",
    "TOO_LONG",
    "Example",
    "Generation",
    "PackedShape",
    "PairEncoder",
    "Picture",
    "PictureEncoder",
    "Rejected",
    "SequenceEncoder",
    "SequenceTooLong",
    "Source",
    "Text",
    "Understanding",
    "WeightedSource",
    "make_source",
    "mixed_batches",
    "pack",
    "source_seed",
    "stream_batches",
    "streams_of",
    "unpacked_batches",
]
