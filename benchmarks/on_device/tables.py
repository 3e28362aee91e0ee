"""A report of `benchmarks/accelerator.py` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_HIDDEN = ("section_s", "problem", "log")


def render(report: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """All sections that have begun."""
    parts = [
        f"`{report['command']}`, {report['date']}, model {report['model']}, large {report['large']}"
    ]
    for name, found in report["sections"].items():
        lines = [f"## {titles[name]} ({name})"]
        if "section_s" in found:
            lines[0] += f", {found['section_s']:.0f} s"
        values = {key: value for key, value in found.items() if key not in _HIDDEN}
        lines.append(_values(values) if values else "Nothing measured.")
        if problem := found.get("problem"):
            lines.append(f"**{problem}**")
        if log := found.get("log"):
            lines.append("```\n" + "\n".join(line[:300] for line in log) + "\n```")
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def _values(values: Mapping[str, Any], path: str = "") -> str:
    """Plain values as a list, tables of mappings that look alike as tables, the rest below each other."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict | list)}
    nested = {key: value for key, value in values.items() if isinstance(value, dict) and value}
    lists = {key: value for key, value in values.items() if isinstance(value, list) and value}
    lines = []
    if plain:
        lines.append("\n".join(f"- {key}: {_number(value)}" for key, value in plain.items()))
    flat = {
        key: v
        for key, v in nested.items()
        if not any(isinstance(x, dict | list) for x in v.values())
    }
    if flat:
        head = list(dict.fromkeys(name for value in flat.values() for name in value))
        rows = [[key, *(_number(value.get(name)) for name in head)] for key, value in flat.items()]
        lines.append((f"{path}\n\n" if path else "") + _table(["", *head], rows))
    for key, value in nested.items():
        if key not in flat:
            inner = f"{path}, {key}" if path else key
            lines.append(f"**{inner}**\n\n{_values(value)}")
    for value in lists.values():
        if all(isinstance(item, dict) for item in value):
            head = list(value[0])
            lines.append(
                _table(head, [[_number(item.get(name)) for name in head] for item in value])
            )
    return "\n\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/").replace("\n", " ")
