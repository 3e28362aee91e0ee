"""Data: sources of examples -> sequences -> mixture by weight -> packed batches, on Grain.

What is offered is imported when it is first used: Grain brings JAX with it, and to read files needs neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "encode": "TOO_LONG EncodingMistake PairEncoder PictureEncoder SequenceEncoder SequenceTooLong",
    "examples": "STAGE_0_TASKS TASKS Example Generation Picture Rejected Source Text Understanding read_example",
    "held_out": "HeldOut WithoutHeldOut held_out_indices",
    "mixture": "WeightedSource mixed_batches mixed_sequences source_seed unpacked_batches",
    "packing": "COUNTED_BY PackedShape pack",
    "reading": "WorkerProcesses",
    "registry": "SOURCES TOKENIZERS make_source",
    "rejects": "Ledger Rejection Tally TooManyRejected in_words",
    "streams": "stream_batches streams_of",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
