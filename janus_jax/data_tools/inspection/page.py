"""The page of an inspection: one HTML file that needs no other, and runs nothing.

Whatever comes from the data goes through `text`, so that no caption is markup, steers anything, or turns the
direction of what follows it.
"""

from __future__ import annotations

import datetime
from html import escape
from typing import TYPE_CHECKING

from janus_jax.console import printable
from janus_jax.data_tools.inspection.charts import histogram, meter
from janus_jax.data_tools.inspection.reading import WORDS
from janus_jax.data_tools.inspection.samples import Piece, Sample

if TYPE_CHECKING:
    from janus_jax.data_tools.inspection.inspector import Findings, SourceFindings

REJECTS = 200  # rejected records that a page lists
LIMIT = " (all it may)"  # epochs
LETTERS = 4000  # of one text in a sample
_ROOM = {
    "tokens": "tokens",
    "targets": "learnt tokens",
    "und_images": "pictures to understand",
    "gen_images": "pictures to draw",
}
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882;--good:#1a7f37;--goodback:#2da44e33;--bad:#cf222e}
@media(prefers-color-scheme:dark){:root{--good:#56d364;--bad:#ff7b72}}
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em}h2{margin-top:2em;border-top:1px solid var(--line);padding-top:1em}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid var(--line);
text-align:left;vertical-align:top}td.n{white-space:nowrap}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}.problem{border-left:4px solid var(--bad);padding:.3em .8em;background:var(--soft)}
.warning{border-left:4px solid #bf8700;padding:.3em .8em;background:var(--soft)}.soft{opacity:.7}
.charts{display:flex;flex-wrap:wrap;gap:1em 2em}figure{margin:0}figure p,figcaption{margin:0;font-size:13px}
svg rect{fill:#4078c0}svg text{font-size:11px;fill:currentColor}
.meter{display:flex;gap:.7em;align-items:center}.meter span{width:12em}
.meter div{width:20em;background:var(--soft)}
.meter i{display:block;height:.8em;background:#4078c0}
.sample{border:1px solid var(--line);border-radius:6px;padding:.6em .9em;margin:.8em 0}
.sample p{margin:.1em 0}
.sample img{max-height:160px;margin:.4em .5em .2em 0;border:1px solid var(--line);vertical-align:top}
.tokens{white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.6 ui-monospace,monospace;color:#888}
.tokens b{font-weight:400;color:var(--good);background:var(--goodback)}
.tokens kbd{font:inherit;font-size:12px;border:1px solid var(--line);border-radius:3px;padding:0 .25em;
unicode-bidi:isolate}.tokens bdi,.tokens b{unicode-bidi:isolate}
.details{unicode-bidi:isolate;overflow-wrap:anywhere}
"""


def text(value: object, limit: int = 0) -> str:
    """Text of unknown origin as HTML: escaped, and its control characters written out.

    Args:
      value: the text; its line breaks and tabs stay.
      limit: of letters; what is cut ends in the number of letters there were. 0 for none.
    """
    whole = str(value)
    shown = escape(printable(whole[:limit] if limit else whole, keep="\n\t"))
    if limit and len(whole) > limit:
        shown += f'<span class="soft"> ... ({len(whole):,} letters)</span>'
    return shown


def page(found: Findings) -> str:
    """The whole page."""
    reading = found.reading
    config, stage = reading.experiment.config, reading.stage
    title = f"{stage.name} of {config.name}"
    made = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>What {text(stage.name)} of {text(config.name)} reads</h1>",
        f"<p>{text(config.data.manifest or 'the sources of the config')}<br>"
        f'<span class="soft">{made}, {_read(found)}</span></p>',
    ]
    parts += [f'<p class="problem">{text(p.text)}</p>' for p in found.problems]
    parts += [f'<p class="warning">{text(w)}</p>' for w in found.warnings]
    parts += [_overview(found), _mixture(found)]
    parts += [_source(found, source) for source in found.sources]
    parts += [_rejected(found), "</body></html>"]
    return "\n".join(parts) + "\n"


def _read(found: Findings) -> str:
    read = sum(source.counts.read for source in found.sources)
    rate = read / found.seconds if found.seconds else 0
    limited = f" (at most {found.limit:,} of each source, spread evenly)" if found.limit else ""
    return f"{read:,} records read{limited} in {found.seconds:.1f} s, {rate:,.0f} a second"


def _overview(found: Findings) -> str:
    heads = ("source", "task", "format")
    numbers = ("records", "read", "used", "shortened", "left out", "tokens, median", "tokens, max")
    numbers += ("of 1000 sequences", "of the tokens", "epochs")
    rows = []
    for source in found.sources:
        counts, mixed = source.counts, source.mixed
        out, tokens = sum(counts.rejected.values()), counts.tokens.summary()
        names = (counts.part.label, WORDS[counts.part.task], counts.part.format)
        values = (
            f"{counts.records:,}",
            f"{counts.read:,}",
            f"{counts.used:,}",
            f"{counts.shortened:,}",
            f"{out:,} ({out / counts.read:.1%})",
            f"{tokens['median']:,}" if counts.used else "-",
            f"{tokens['max']:,}" if counts.used else "-",
            f"{mixed.per_thousand:g}",
            "-" if mixed.tokens is None else f"{mixed.tokens:.1%}",
            "-" if mixed.epochs is None else f"{mixed.epochs:,.2f}" + LIMIT * mixed.used_up,
        )
        cells = "".join(f"<td>{text(name)}</td>" for name in names)
        cells += "".join(f'<td class="n">{value}</td>' for value in values)
        rows.append(f"<tr>{cells}</tr>")
    head = "".join(f"<th>{h}</th>" for h in heads)
    head += "".join(f'<th class="n">{h}</th>' for h in numbers)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _mixture(found: Findings) -> str:
    stage, packing = found.reading.stage, found.packing
    lines = [
        "<h2>Mixture and rows</h2>",
        f"<p>{stage.steps:,} steps of {stage.batch_size:,} rows, understanding : text : generation = "
        f"{' : '.join(f'{share:g}' for share in stage.ratio)}.</p>",
    ]
    lines += [meter(s.mixed.label, s.mixed.per_thousand / 1000) for s in found.sources]
    if packing.rows:
        lines.append(
            f"<p>The first {packing.rows:,} rows hold {packing.sequences:.1f} sequences each, and are so full:</p>"
        )
        lines += [meter(_ROOM[name], share) for name, share in packing.fill.items()]
    if packing.note:
        lines.append(f"<p>Rows: {text(packing.note)}.</p>")
    return "\n".join(lines)


def _source(found: Findings, source: SourceFindings) -> str:
    counts, row = source.counts, found.reading.row
    lines = [
        f"<h2>{text(counts.part.label)} <small class='soft'>{WORDS[counts.part.task]}</small></h2>",
        '<div class="charts">',
        histogram("tokens of a sequence", counts.tokens, row.tokens),
        histogram("learnt tokens of a sequence", counts.targets, row.targets),
        histogram("tokens of an answer", counts.answers),
        histogram("tokens of a prompt", counts.prompts),
        histogram("pictures of a record", counts.pictures) if counts.widths else "",
        histogram("widths of the pictures, pixels", counts.widths),
        histogram("heights of the pictures, pixels", counts.heights),
        "</div>",
    ]
    if source.repeated:
        lines.append(
            f"<p>{source.repeated:,} of {counts.used:,} records say word by word what an earlier one says, "
            "whatever their pictures. The most frequent:</p><table>"
        )
        lines += [
            f'<tr><td class="n">{r.times:,}</td><td class="details">{text(r.text, 200)}</td></tr>'
            for r in source.repeats
        ]
        lines.append("</table>")
    if source.samples:
        lines.append(
            "<p>As the model reads them: what it <span class='tokens'><b>learns</b></span> is green.</p>"
        )
    return "\n".join(lines + [_sample(sample) for sample in source.samples])


def _sample(sample: Sample) -> str:
    facts = [
        text(sample.record, 300),
        f"{sample.tokens:,} tokens",
        f"{sample.targets:,} learnt tokens" if sample.targets else "",
        "shortened to fit a row" if sample.shortened else "",
        text(sample.note),
    ]
    lines = [
        f'<div class="sample"><p class="soft details">{" · ".join(fact for fact in facts if fact)}</p>'
    ]
    if sample.said:
        lines.append(f'<p class="details">{text(sample.said, LETTERS)}</p>')
    lines += [f'<img src="{uri}" alt="picture {i}">' for i, uri in enumerate(sample.shown, 1)]
    if sample.drawn:
        lines.append(f'<img src="{sample.drawn}" alt="picture to draw">')
    elif sample.has_codes:
        lines.append('<p class="soft">codes; give --checkpoint to see the picture</p>')
    # No white space between the pieces: every space that is there is one of the sequence.
    lines.append(f'<div class="tokens">{"".join(map(_piece, sample.pieces))}</div></div>')
    return "\n".join(lines)


def _piece(piece: Piece) -> str:
    if piece.control:
        times = f" x{piece.tokens:,}" if piece.tokens > 1 else ""
        codes = f" ({piece.codes:,} codes)" if piece.codes else ""
        shown = f"<kbd>{escape(piece.text)}{times}{codes}</kbd>"
    else:
        shown = f'<bdi dir="ltr">{text(piece.text, LETTERS)}</bdi>'
    return f"<b>{shown}</b>" if piece.learnt else shown


def _rejected(found: Findings) -> str:
    kept = [(s.counts, line) for s in found.sources for line in s.counts.shown]
    if not kept:
        return "<h2>Left out</h2><p>Nothing.</p>"
    lines = ["<h2>Left out</h2><p>rejected.jsonl lists all of them.</p><table>"]
    lines.append("<tr><th>source</th><th>reason</th><th>record</th><th>detail</th></tr>")
    before = None
    for counts, line in sorted(
        kept[:REJECTS], key=lambda pair: (pair[1]["source"], pair[1]["reason"])
    ):
        group = (line["source"], line["reason"])
        number = counts.rejected[line["reason"]]
        first = (
            f"<td>{text(line['source'])}</td><td>{text(line['reason'])} <b>({number:,})</b></td>"
        )
        lines.append(
            f"<tr>{first if group != before else '<td></td><td></td>'}"
            f'<td class="details">{text(line["record"], 300)}</td>'
            f'<td class="details">{text(line["detail"], 300)}</td></tr>'
        )
        before = group
    return "\n".join([*lines, "</table>"])
