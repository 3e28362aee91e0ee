"""All numbers of an inspection as JSON."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from janus_jax.data_tools.inspection.reading import WORDS
from janus_jax.untrusted import printable

if TYPE_CHECKING:
    from janus_jax.data_tools.inspection.inspector import Findings, SourceFindings

VERSION = 1
_TEXT = 200  # letters of a text that is repeated


def as_json(found: Findings) -> dict[str, Any]:
    """JSON-ready: what was read, each source, the mixture, the rows, problems and warnings."""
    reading = found.reading
    config, stage = reading.experiment.config, reading.stage
    return {
        "version": VERSION,
        "config": config.name,
        "stage": stage.name,
        "manifest": config.data.manifest,
        "seed": config.seed,
        "steps": stage.steps,
        "batch_size": stage.batch_size,
        "ratio": list(stage.ratio),
        "row": dataclasses.asdict(reading.row),
        "too_long": reading.too_long,
        "max_rejected": reading.max_rejected,
        "limit": found.limit or None,
        "seconds": round(found.seconds, 3),
        "sources": {source.counts.part.label: _source(source) for source in found.sources},
        "packing": dataclasses.asdict(found.packing),
        "unread": list(reading.unread),
        "problems": [dataclasses.asdict(problem) for problem in found.problems],
        "warnings": list(found.warnings),
    }


def _source(found: SourceFindings) -> dict[str, Any]:
    counts, mixed = found.counts, found.mixed
    part = counts.part
    return {
        "task": WORDS[part.task],
        "format": part.format,
        "records": counts.records,
        "read": counts.read,
        "used": counts.used,
        "shortened": counts.shortened,
        "rejected": dict(counts.rejected.most_common()),
        "rejected_share": round(sum(counts.rejected.values()) / counts.read, 6),
        "share": round(part.share, 6),
        "per_thousand_sequences": mixed.per_thousand,
        "share_of_tokens": mixed.tokens,
        "sequences_in_stage": mixed.sequences,
        "epochs": mixed.epochs,
        "epochs_used_up": mixed.used_up,
        "tokens": counts.tokens.summary(),
        "targets": counts.targets.summary(),
        "answers": counts.answers.summary(),
        "prompts": counts.prompts.summary(),
        "pictures": counts.pictures.summary(),
        "widths": counts.widths.summary(),
        "heights": counts.heights.summary(),
        "smaller_pictures": counts.smaller,
        "unknown_tokens": counts.unknown,
        "repeated_texts": found.repeated,
        "most_repeated": [
            {"index": r.index, "times": r.times, "text": printable(r.text, _TEXT)}
            for r in found.repeats
        ],
    }
