"""Requests in closed loops of many clients: how many a second, after how long, and with what answers.

The same requests go to a server that computes them one by one (`--max_batch 1`), in turn with the one that is
measured, so that both see the same machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from benchmarks.serving.asks import KINDS
from benchmarks.serving.checks import Check, Same, check_ended
from benchmarks.serving.client import Answer, connect, percentiles, send_all
from benchmarks.serving.machine import Shares
from benchmarks.serving.server import Server

TOGETHER, ONE_BY_ONE = "together", "one by one"


async def measure(
    server: Server,
    peer: Server | None,
    levels: Sequence[int],
    per_client: int,
    rounds: int,
    limit: float,
    quiet: bool,
) -> dict[str, Any]:
    """All kinds of requests from so many clients.

    Args:
      server: is measured.
      peer: computes one by one; None leaves these rows out.
      levels: numbers of clients; 1 is always among them.
      per_client: requests of each.
      rounds: of everything.
      limit: seconds after which a request is stuck.
      quiet: no progress bar.

    Returns:
      "rows", one a kind, level and server; "ratios" of rates and latencies; "checks".
    """
    levels = sorted({1, *levels})
    servers = {TOGETHER: server} | ({ONE_BY_ONE: peer} if peer else {})
    runs: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    same, answers = Same(), []
    for who, one in servers.items():  # what happens once only is not measured
        async with connect(one.url) as client:
            answers += await send_all(client, [make(0) for make in KINDS.values()], 1, limit)
        same.add(answers, f"{who} first")
    with Shares(*servers.values()) as shares:
        bar = tqdm(
            [
                (r, k, n, who)
                for r in range(rounds)
                for k in KINDS
                for n in levels
                for who in servers
            ],
            desc="load",
            unit="run",
            disable=quiet or None,
        )
        for _, kind, clients, who in bar:
            spent = servers[who].cpu()
            came, seconds = await _run(servers[who], kind, clients, per_client, limit)
            spent = None if spent is None else servers[who].cpu() - spent
            answers += came
            same.add(came, f"{who} {clients}")
            run = _numbers(came, seconds, spent)
            runs.setdefault((kind, clients, who), []).append(run)
    rows = [
        {"kind": kind, "clients": clients, "server": who, **_middle(found)}
        for (kind, clients, who), found in runs.items()
    ]
    checks = [
        same.check("the same answers at every load"),
        check_ended(answers),
        Check(
            "none was refused for room",
            not (refused := sum(answer.refused for answer in answers)),
            f"{refused} of {len(answers)}",
        ),
    ]
    return {"rows": rows, "ratios": _ratios(runs), "cores": shares.found, "checks": checks}


async def _run(
    server: Server, kind: str, clients: int, per_client: int, limit: float
) -> tuple[list[Answer], float]:
    """The answers, and the seconds of all together."""
    asks = [KINDS[kind](number) for number in range(clients * per_client)]
    async with connect(server.url) as client:
        began = time.perf_counter()
        answers = await send_all(client, asks, clients, limit)
        return answers, time.perf_counter() - began


def _numbers(answers: Sequence[Answer], seconds: float, spent: float | None) -> dict[str, Any]:
    good = [answer for answer in answers if answer.good]
    drawn = [answer.first for answer in good if answer.ask.pictures]
    said = [answer.first for answer in good if not answer.ask.pictures]
    return {
        "requests": len(answers),
        "good": len(good),
        "seconds": seconds,
        "requests_per_s": len(good) / seconds,
        "made_per_s": sum(answer.tokens for answer in good) / seconds,
        # Steadier than the clock where others use the machine, too.
        "cpu_s_per_request": None if spent is None else spent / len(answers),
        "latency": percentiles([answer.seconds for answer in good]),
        "first_token": percentiles(said),
        "first_partial": percentiles(drawn),
    }


def _middle(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run of the median rate, and the rates of all."""
    rates = [run["requests_per_s"] for run in runs]
    middle = sorted(runs, key=lambda run: run["requests_per_s"])[len(runs) // 2]
    return middle | {"rates": rates}


def _ratios(runs: dict[tuple[str, int, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Above 1 the server is faster than what it is compared with in the same round."""
    found = []
    for (kind, clients, who), own in runs.items():
        if who != TOGETHER:
            continue
        row: dict[str, Any] = {"kind": kind, "clients": clients}
        alone = runs[kind, 1, TOGETHER]
        row["rate_of_one_client"] = _spread(own, alone, lambda a, b: _divide(a, b, _rate))
        if peer := runs.get((kind, clients, ONE_BY_ONE)):
            row["rate_of_one_by_one"] = _spread(own, peer, lambda a, b: _divide(a, b, _rate))
            row["cpu_of_one_by_one"] = _spread(own, peer, lambda a, b: _divide(b, a, _spent))
            for name in ("latency", "first_token", "first_partial"):
                middle = lambda run, name=name: run[name] and run[name]["p50"]
                row[f"{name}_of_one_by_one"] = _spread(
                    own, peer, lambda a, b, middle=middle: _divide(b, a, middle)
                )
        found.append(row)
    return found


def _rate(run: dict[str, Any]) -> float:
    return run["requests_per_s"]


def _spent(run: dict[str, Any]) -> float | None:
    return run["cpu_s_per_request"]


def _divide(a: Any, b: Any, of: Any) -> float | None:
    return of(a) / of(b) if of(a) and of(b) else None


def _spread(own: Sequence[Any], other: Sequence[Any], divide: Any) -> dict[str, float] | None:
    values = [v for a, b in zip(own, other, strict=True) if (v := divide(a, b)) is not None]
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
