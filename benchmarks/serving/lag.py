"""How late a question is answered that costs nothing (/health), while others draw and send large pictures."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from benchmarks.paths import ROOT
from benchmarks.serving.asks import Ask, chat, draw, photo
from benchmarks.serving.checks import Check, check_ended
from benchmarks.serving.client import Answer, connect, send
from benchmarks.serving.machine import Shares
from benchmarks.serving.server import Server
from janus_jax.errors import RunError

CLIENTS = 8
LIMIT = 0.05  # seconds of the 99th percentile
# Above this nothing is judged: the probe waits for a core itself, or others take much of the machine.
_OWN, _OTHERS = 0.01, 0.1
LARGE = ((4000, 3000, "JPEG"), (2000, 1500, "PNG"), (5000, 4000, "JPEG"))


def _large(number: int) -> Ask:
    width, height, kind = LARGE[number % len(LARGE)]
    return chat(number, [photo(width, height, number % len(LARGE), kind)], name="a large picture")


def _both(number: int) -> Ask:
    return _large(number // 2) if number % 2 else draw(number)


WORK: dict[str, Callable[[int], Ask] | None] = {
    "nothing": None,
    "drawing": draw,
    "large pictures": _large,
    "both": _both,
}


async def measure(
    server: Server, clients: int, seconds: float, limit: float, quiet: bool
) -> dict[str, Any]:
    """Delays while so many clients have so much done; "rows" one a kind of work, and "checks"."""
    for number in range(len(LARGE)):
        _large(number)  # is made before anybody measures
    rows, answers = [], []
    for name, make in tqdm(WORK.items(), desc="lag", unit="kind", disable=quiet or None):
        with Shares(server) as shares:
            probed, came = await _probed(server, make, clients if make else 0, seconds, limit)
        answers += came
        row = {"work": name, "clients": clients if make else 0, **probed, "cores": shares.found}
        rows.append(row | {"requests": len(came)})
    checks = [check_ended(answers), *(_judge(row) for row in rows)]
    return {"rows": rows, "every_ms": 10, "limit_ms": 1000 * LIMIT, "checks": checks}


async def _probed(
    server: Server, make: Callable[[int], Ask] | None, clients: int, seconds: float, limit: float
) -> tuple[dict[str, Any], list[Answer]]:
    """What the probe says, and the answers that came meanwhile."""
    probe = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.serving.probe", server.url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        if (await probe.stdout.readline()).strip() != b"started":
            raise RunError(f"the probe of {server.url}/health did not start")
        end = time.monotonic() + seconds
        answers: list[Answer] = []
        async with connect(server.url) as client:

            async def work(first: int) -> None:
                number = first
                while time.monotonic() < end:
                    answers.append(await send(client, make(number), limit))
                    number += clients

            await asyncio.gather(*[work(number) for number in range(clients)])
        await asyncio.sleep(max(end - time.monotonic(), 0))
        probe.stdin.close()
        said, _ = await probe.communicate()
    finally:
        if probe.returncode is None:
            probe.kill()
            await probe.wait()
    if probe.returncode:
        raise RunError(f"the probe of {server.url}/health has failed")
    return json.loads(said), answers


def _judge(row: dict[str, Any]) -> Check:
    late, own, others = row["delay"]["p99"], row["own"]["p99"], row["cores"]["others"]
    about = f"{1000 * late:.1f} ms; the probe itself {1000 * own:.1f} ms, others have {others:.0%}"
    judged = own < _OWN and others < _OTHERS
    passed = True if late < LIMIT else False if judged else None
    name = f"/health within {1000 * LIMIT:g} ms (99 %): {row['work']}"
    return Check(name, passed, about + (" of an overloaded machine" if passed is None else ""))
