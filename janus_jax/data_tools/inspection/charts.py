"""Charts as SVG inside of a page."""

from __future__ import annotations

from html import escape

from janus_jax.data_tools.inspection.distribution import Distribution

WIDTH, HEIGHT, FOOT = 320, 90, 16


def histogram(title: str, found: Distribution, room: int = 0) -> str:
    """A histogram with its numbers below it; "" if there is nothing to show.

    Args:
      title: of the chart.
      found: what is shown.
      room: a number that is named beside the title, such as the tokens that a row has room for.
    """
    bars = found.histogram()
    if not bars:
        return ""
    numbers, beside = found.summary(), f" (room for {room:,})" if room else ""
    name = f"<figure><figcaption>{escape(title)}{beside}</figcaption>"
    if numbers["min"] == numbers["max"]:
        return f"{name}<p>always {numbers['max']:,}</p></figure>"
    most, wide = max(count for *_, count in bars), WIDTH / len(bars)
    drawn = []
    for i, (low, high, count) in enumerate(bars):
        tall = (HEIGHT - FOOT) * count / most
        span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        drawn.append(
            f'<rect x="{i * wide:.1f}" y="{HEIGHT - FOOT - tall:.1f}" width="{max(wide - 1, 1):.1f}" '
            f'height="{max(tall, 1) if count else 0:.1f}"><title>{span}: {count:,}</title></rect>'
        )
    ends = (
        f'<text x="0" y="{HEIGHT - 3}">{numbers["min"]:,}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 3}" text-anchor="end">{numbers["max"]:,}</text>'
    )
    return (
        f'{name}<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(drawn)}{ends}</svg>'
        f"<p>min {numbers['min']:,} · median {numbers['median']:,} · 95 % {numbers['p95']:,} · "
        f"max {numbers['max']:,}</p></figure>"
    )


def meter(name: str, share: float) -> str:
    """A bar that is filled so far."""
    return (
        f'<div class="meter"><span>{escape(name)}</span><div><i style="width:{100 * min(share, 1):.1f}%"></i>'
        f"</div><b>{share:.1%}</b></div>"
    )
