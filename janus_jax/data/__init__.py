"""Data: sources of examples -> sequences -> mixture by weight -> packed batches, on Grain."""

from janus_jax.data.encode import (
    TOO_LONG,
    EncodingMistake,
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
    read_example,
)
from janus_jax.data.held_out import HeldOut, WithoutHeldOut, held_out_indices
from janus_jax.data.mixture import (
    WeightedSource,
    mixed_batches,
    mixed_sequences,
    source_seed,
    unpacked_batches,
)
from janus_jax.data.packing import COUNTED_BY, PackedShape, pack
from janus_jax.data.reading import WorkerProcesses
from janus_jax.data.registry import SOURCES, TOKENIZERS, make_source
from janus_jax.data.rejects import Ledger, Rejection, Tally, TooManyRejected, in_words
from janus_jax.data.streams import stream_batches, streams_of

__all__ = [
    "COUNTED_BY",
    "SOURCES",
    "STAGE_0_TASKS",
    "TASKS",
    "TOKENIZERS",
    "TOO_LONG",
    "EncodingMistake",
    "Example",
    "Generation",
    "HeldOut",
    "Ledger",
    "PackedShape",
    "PairEncoder",
    "Picture",
    "PictureEncoder",
    "Rejected",
    "Rejection",
    "SequenceEncoder",
    "SequenceTooLong",
    "Source",
    "Tally",
    "Text",
    "TooManyRejected",
    "Understanding",
    "WeightedSource",
    "WithoutHeldOut",
    "WorkerProcesses",
    "held_out_indices",
    "in_words",
    "make_source",
    "mixed_batches",
    "mixed_sequences",
    "pack",
    "read_example",
    "source_seed",
    "stream_batches",
    "streams_of",
    "unpacked_batches",
]
