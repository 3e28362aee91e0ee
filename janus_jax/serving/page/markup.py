"""Pieces of HTML of the page. Whatever comes from elsewhere is escaped here."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from janus_jax.serving.page.draw import Card

CSS = """
.gradio-container > main { width: 100%; max-width: 1240px !important; margin: 0 auto !important; }
footer { display: none !important; }
#top { align-items: center; flex-wrap: wrap; row-gap: .2rem; }
#top > #state { flex: 0 0 auto !important; width: auto !important; min-width: max-content !important; }
@media (max-width: 500px) { .gradio-container > main { padding: .6rem !important; } }
#title h1 { display: inline; font-size: 1.5rem; margin-right: .6rem; }
#top > #title { flex: 1 1 auto !important; width: auto !important; min-width: 0 !important; }
#title span { opacity: .65; overflow-wrap: anywhere; }
#state { text-align: right; }
#state span { padding: .2rem .7rem; border-radius: 1rem; font-size: .85rem; white-space: nowrap; }
#state .ready { background: #16a34a22; color: #15803d; }
#state .busy { background: #d9770622; color: #b45309; }
.dark #state .ready { color: #4ade80; } .dark #state .busy { color: #fbbf24; }
.html-container:has(> * > :is(.line, .cards, .empty)) { padding: 0 !important; }
#keep_seed { align-self: center; flex-grow: 0; white-space: nowrap; }
.line { min-height: 1.6rem; overflow-wrap: anywhere; }
.line.failed { color: #b91c1c; background: #dc262615; border-radius: .4rem; padding: .4rem .7rem; }
.dark .line.failed { color: #fca5a5; }
.line.running::before { content: ""; display: inline-block; width: .6rem; height: .6rem; margin-right: .5rem;
  border-radius: 50%; background: var(--color-accent); animation: pulse-dot 1s infinite alternate; }
@keyframes pulse-dot { to { opacity: .2; } }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(2, minmax(0, 270px)); }
.cards.one { grid-template-columns: minmax(0, 420px); }
.cards.many { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.card { border: 1px solid var(--border-color-primary); border-radius: .6rem; overflow: hidden;
  background: var(--background-fill-secondary); }
.card .frame { position: relative; width: 100%; background: #fff; }
.card img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; margin: 0; }
.small img, .small-pictures img { image-rendering: pixelated; }
.card .bar { height: 4px; background: transparent; }
.card .bar div { height: 100%; background: var(--color-accent); transition: width .3s; }
.card .foot { padding: .35rem .7rem; font-size: .85rem; min-height: 2rem; display: flex;
  justify-content: space-between; gap: .5rem; color: var(--body-text-color); }
.card a { color: var(--link-text-color); }
.empty { border: 1px dashed var(--border-color-primary); border-radius: .6rem; padding: 4.5rem 1rem;
  text-align: center; opacity: .6; }
#gallery, #gallery .grid-wrap { min-height: 0 !important; }
#gallery:has(.preview), #gallery:has(.preview) .grid-wrap { min-height: 400px !important; }
#gallery .grid-wrap { padding-top: 1.9rem; }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)) !important; }
#gallery .thumbnail-lg { aspect-ratio: auto; height: auto; }
#gallery .thumbnail-lg > img { aspect-ratio: 1; height: auto; }
#gallery .caption-label { position: static; display: block; max-width: 100%; padding: .2rem .4rem; border: 0;
  font-size: .72rem; line-height: 1.3; height: 2.6em; box-sizing: content-box; white-space: normal;
  text-align: left; }
#chat .icon-button-wrapper { display: none; }
#chat img { max-height: 220px; min-width: 120px; object-fit: contain; }
"""


def line_of(text: str, failed: bool = False, running: bool = False) -> str:
    """The line that says how something goes; errors are one line, too."""
    kind = "line" + " failed" * failed + " running" * running
    role = "alert" if failed else "status"
    return f'<div class="{kind}" role="{role}">{html.escape(text)}</div>'


def state_of(ready: bool) -> str:
    """Whether everything is compiled."""
    if ready:
        return '<span class="ready">ready</span>'
    return '<span class="busy">compiling: requests wait</span>'


def cards_of(cards: Sequence[Card], width: int, height: int) -> str:
    """Pictures side by side, as far as they are; finished ones can be taken home.

    Args:
      cards: in order.
      width, height: of a picture in pixels.
    """
    if not cards:
        return '<div class="empty">Pictures appear here, and grow while they are drawn.</div>'
    size = " one" if len(cards) == 1 else " many" if len(cards) > 4 else ""
    small = " small" if width < 256 else ""
    shown = "".join(_card(number, card, width, height) for number, card in enumerate(cards))
    return f'<div class="cards{size}{small}">{shown}</div>'


def _card(number: int, card: Card, width: int, height: int) -> str:
    drawn, source = card.drawn, card.source
    name = f"picture {number + 1}"
    foot = f"<span>{name}</span>"
    if drawn is not None:
        source = f"gradio_api/file={quote(drawn.file)}"
        file = html.escape(Path(drawn.file).name)
        foot += f'<a href="{source}" download="{file}" class="download">PNG</a>'
    image = f'<img src="{source}" alt="{name}">' if source else ""
    part = f"{100 * card.done:.0f}"
    state = "finished" if drawn is not None else "growing" if source else "waiting"
    bar = "" if drawn is not None else f'<div style="width:{part}%"></div>'
    return (
        f'<div class="card {state}" data-done="{part}">'
        f'<div class="frame" style="aspect-ratio:{width}/{height}">{image}</div>'
        f'<div class="bar">{bar}</div><div class="foot">{foot}</div></div>'
    )
