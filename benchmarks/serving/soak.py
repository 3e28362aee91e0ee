"""Many mixed requests, some of whose clients go away: does anything get stuck, grow, or compile?

Requests of known answers are sent alone before and after, and one in ten of the others is one of them.
"""

from __future__ import annotations

import asyncio
import collections
import random
import statistics
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.serving.asks import Ask, anything, references
from benchmarks.serving.checks import Check, Same, check_ended
from benchmarks.serving.client import Answer, connect, percentiles, send, send_all
from benchmarks.serving.machine import Shares
from benchmarks.serving.server import Server

ABORTED = 0.2  # of the requests
DRAIN = 30.0  # seconds in which the gauges have to be 0 after the last answer
_SAMPLE = 0.25  # seconds between two looks at the memory


async def measure(
    server: Server, requests: int, clients: int, seed: int, limit: float, growth: float, quiet: bool
) -> dict[str, Any]:
    """Sends them all.

    Args:
      server: is ready, and used by nobody else.
      requests: how many.
      clients: that send them, each the next one once the last has ended.
      seed: of what is asked and aborted.
      limit: seconds after which a request is stuck.
      growth: MiB by which the memory of the server may grow over the last two thirds of the requests.
      quiet: no progress bar.

    Returns:
      How requests ended, latencies, memory, programs, and "checks".
    """
    known, same = references(), Same()
    async with connect(server.url) as client:
        before = await send_all(client, known, 1, limit)
        same.add(before, "alone before")
        counted = await server.stats()
        with Shares(server) as shares:
            answers, memory = await _send_mixed(
                server, client, requests, clients, seed, limit, before, quiet
            )
        same.add(answers, "among others")
        drained = await server.wait_open(0, 0, DRAIN)
        after = await send_all(client, known, 1, limit)
        same.add(after, "alone after")
    counts = await server.stats()
    ended = {
        f"{kind} {name}": counts[name, kind] - counted.get((name, kind), 0)
        for name, kind in counts
        if name.endswith("_total")
    }
    found = {
        "requests": requests,
        "clients": clients,
        "seconds": shares.seconds,
        "cores": shares.found,
        "ended": dict(collections.Counter(_outcome(answer) for answer in answers)),
        "engine": ended,
        "latency": {
            name: percentiles([a.seconds for a in answers if a.good and a.ask.name == name])
            for name in ("any draw", "any chat")
        },
        "memory": _growth(memory),
        "programs": {"at_start": server.programs, "after_ready": server.compiled_since_ready()},
        "gauges_back_after_s": drained,
    }
    found["checks"] = [
        check_ended([*before, *answers, *after]),
        Check("waiting and running go back to 0", drained is not None, f"within {DRAIN:g} s"),
        same.check("the same answers before, among others and after"),
        _check_aborted(answers, ended),
        _check_memory(found["memory"], growth),
        check_compiled(server),
    ]
    return found


async def _send_mixed(
    server: Server,
    client: Any,
    requests: int,
    clients: int,
    seed: int,
    limit: float,
    alone: list[Answer],
    quiet: bool,
) -> tuple[list[Answer], list[tuple[int, float]]]:
    """The answers; (requests that had ended, MiB of the server) at many moments."""
    rng = random.Random(seed)
    known = references()
    plan: list[tuple[Ask, bool]] = []
    for number in range(requests):
        repeat = rng.random() < 0.1
        ask = rng.choice(known) if repeat else anything(seed * requests + number)
        plan.append((ask, rng.random() < ABORTED))
    # As long as drawing and chatting take by now: an abort can hit any part of a request, also its wait.
    usual = {
        drawn: collections.deque(
            [a.seconds for a in alone if bool(a.ask.pictures) == drawn], maxlen=50
        )
        for drawn in (True, False)
    }
    answers: list[Answer] = []
    memory: list[tuple[int, float]] = []
    rest = iter(plan)

    async def work(bar: tqdm) -> None:
        for ask, aborted in rest:
            taken = usual[bool(ask.pictures)]
            abort = rng.uniform(0, statistics.median(taken)) if aborted else None
            answer = await send(client, ask, limit, abort)
            answers.append(answer)
            if answer.good:
                taken.append(answer.seconds)
            bar.update()

    async def watch() -> None:
        while True:
            if (resident := server.resident()) is not None:
                memory.append((len(answers), resident))
            await asyncio.sleep(_SAMPLE)

    watcher = asyncio.create_task(watch())
    try:
        with tqdm(total=requests, desc="soak", unit="request", disable=quiet or None) as bar:
            await asyncio.gather(*[work(bar) for _ in range(clients)])
    finally:
        watcher.cancel()
    return answers, memory


def check_compiled(server: Server) -> Check:
    """Whether nothing was compiled since the server said that it is ready. That the log shows compilations at all
    is seen by those of the start."""
    name, after = "nothing compiled after /ready", server.compiled_since_ready()
    if after is None:
        return Check(name, None, "no log of the server: --log")
    if not server.programs:
        return Check(name, None, "the log shows no compilation even before: JAX_LOG_COMPILES=1?")
    return Check(name, after == 0, f"{server.programs} programs before, {after} after")


def _outcome(answer: Answer) -> str:
    """How a request ended, in a word."""
    if answer.ended != "answered":
        return answer.ended
    return f"{answer.status}" if answer.status != 200 or answer.good else f"200, {answer.code}"


def _check_aborted(answers: list[Answer], ended: dict[str, float]) -> Check:
    """Whether aborts reached the engine: else the test would test nothing."""
    aborted = sum(answer.ended == "aborted" for answer in answers)
    seen = sum(value for name, value in ended.items() if name.endswith("cancelled_total"))
    about = f"{aborted} connections closed, {seen:.0f} jobs cancelled in the engine"
    return Check("what nobody waits for is cancelled", seen > 0 if aborted >= 5 else None, about)


def _growth(memory: list[tuple[int, float]]) -> dict[str, float] | None:
    """A line through what was seen after the first third of the requests."""
    if not memory:
        return None
    last = memory[-1][0]
    kept = [(done, mib) for done, mib in memory if done >= last / 3]
    if len({done for done, _ in kept}) < 3:
        return None
    slope = float(np.polyfit(*zip(*kept, strict=True), 1)[0])
    return {
        "first_mib": memory[0][1],
        "third_mib": kept[0][1],
        "last_mib": memory[-1][1],
        "most_mib": max(mib for _, mib in memory),
        "mib_per_1000_requests": 1000 * slope,
        "growth_mib": slope * (kept[-1][0] - kept[0][0]),
    }


def _check_memory(memory: dict[str, float] | None, growth: float) -> Check:
    name = "memory does not grow after the first third"
    if memory is None:
        return Check(name, None, "the process cannot be seen: --pid")
    about = (
        f"{memory['growth_mib']:.1f} MiB, at most {growth:g}; {memory['last_mib']:.0f} at the end"
    )
    return Check(name, memory["growth_mib"] <= growth, about)
