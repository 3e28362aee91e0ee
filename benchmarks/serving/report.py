"""What was measured of a server, as tables."""

from __future__ import annotations

from typing import Any

from benchmarks.inference.report import table


def show(report: dict[str, Any]) -> str:
    """The sections that were measured, and then all checks."""
    parts, found = [], report["sections"]
    for name, show_section in _SECTIONS.items():
        if name in found:
            parts.append(f"{name}\n{show_section(found[name])}")
    checks = [(name, check) for name, section in found.items() for check in section["checks"]]
    word = {True: "yes", False: "NO", None: "not judged"}
    lines = []
    for name, check in checks:
        about = f" ({_short(check['about'])})" if check["about"] else ""
        lines.append(f"{word[check['passed']].ljust(10)}  {name}: {check['name']}{about}")
    parts.append("\n".join(["held        what must be so", *lines]))
    return "\n\n".join(parts)


def _load(section: dict[str, Any]) -> str:
    head = "requests|clients|computed|requests/s|made/s|CPU ms/request|latency p50 s|p95|max"
    head += "|first token p50 s|p95|first partial p50 s|p95"
    rows = [
        [
            row["kind"],
            str(row["clients"]),
            row["server"],
            _number(row["requests_per_s"]),
            _number(row["made_per_s"]),
            _number(row["cpu_s_per_request"] and 1000 * row["cpu_s_per_request"]),
            *(_of(row["latency"], key) for key in ("p50", "p95", "max")),
            *(_of(row["first_token"], key) for key in ("p50", "p95")),
            *(_of(row["first_partial"], key) for key in ("p50", "p95")),
        ]
        for row in section["rows"]
    ]
    parts = [table(head.split("|"), rows)]
    names = {
        "rate_of_one_client": "rate / one client",
        "rate_of_one_by_one": "rate / one by one",
        "cpu_of_one_by_one": "CPU",
        "latency_of_one_by_one": "latency",
        "first_token_of_one_by_one": "first token",
        "first_partial_of_one_by_one": "first partial",
    }
    head = ["requests", "clients", *names.values()]
    rows = [
        [row["kind"], str(row["clients"]), *(_spread(row.get(name)) for name in names)]
        for row in section["ratios"]
    ]
    parts.append(table(head, rows))
    parts.append(
        "ratios: median (least-most of the rounds); above 1 the server is faster than the same requests from one "
        f"client, or than --max_batch 1 (for the p50 of times, too).\n{_cores(section['cores'])}"
    )
    return "\n".join(parts)


def _soak(section: dict[str, Any]) -> str:
    ended = ", ".join(f"{name}: {count}" for name, count in sorted(section["ended"].items()))
    lines = [
        f"{section['requests']} requests of {section['clients']} clients in {section['seconds']:.1f} s; {ended}"
    ]
    for name, latency in section["latency"].items():
        times = ", ".join(f"{key} {_of(latency, key)}" for key in ("p50", "p95", "max"))
        lines.append(f"{name}: {times} s")
    if memory := section["memory"]:
        lines.append(
            f"memory: {memory['first_mib']:.0f} MiB at first, {memory['third_mib']:.0f} after a third, "
            f"{memory['last_mib']:.0f} at the end; {memory['mib_per_1000_requests']:.1f} MiB per 1,000 requests"
        )
    return "\n".join([*lines, _cores(section["cores"])])


def _lag(section: dict[str, Any]) -> str:
    head = "while|clients|asked|p50 ms|p99 ms|max ms|probe's own p99 ms|server|clients' cores|others|requests"
    rows = []
    for row in section["rows"]:
        ms = [f"{1000 * row['delay'][key]:.1f}" for key in ("p50", "p99", "max")]
        cores = [f"{row['cores'][who]:.0%}" for who in ("server", "clients", "others")]
        own = f"{1000 * row['own']['p99']:.1f}"
        counts = [str(row["clients"]), str(row["asked"])]
        rows.append([row["work"], *counts, *ms, own, *cores, str(row["requests"])])
    return table(head.split("|"), rows)


def _stop(section: dict[str, Any]) -> str:
    refused = section["refused_after_s"]
    return (
        f"{section['requests']} requests; new connections refused after {_number(refused)} s, with "
        f"{section['in_flight_when_refused']} in flight; all answered after {section['answered_after_s']:.2f} s, "
        f"ended after {section['ended_after_s']:.2f} s with exit code {section['exit_code']}"
    )


def _queue(section: dict[str, Any]) -> str:
    statuses = ", ".join(f"{count} x {status}" for status, count in section["statuses"].items())
    return (
        f"{section['sent']} requests of {section['pictures_of_a_request']} pictures at once, a queue of "
        f"{section['queue']} pictures, a deadline of {section['deadline_s']:.2f} s: "
        f"{statuses}; Retry-After {section['retry_after_s']} s; refused after "
        f"{_of(section['refused_after'], 'p50')} s (p50), {_of(section['refused_after'], 'max')} s (max)"
    )


_SECTIONS = {"load": _load, "soak": _soak, "lag": _lag, "queue": _queue, "stop": _stop}


def _cores(shares: dict[str, float]) -> str:
    return (
        f"cores: servers {shares['server']:.0%}, clients {shares['clients']:.0%}, "
        f"others {shares['others']:.0%} of all"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _of(times: dict[str, float] | None, key: str) -> str:
    return "-" if times is None else f"{times[key]:.3g}"


def _spread(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"


def _short(text: str, most: int = 150) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
