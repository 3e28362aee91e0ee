"""More requests than may wait, and a deadline that most of them cannot hold: 429 and 504, and then as before.

The server is one that computes one picture after the other. Its queue is ten times what fits into the deadline, as
a machine that others use is several times faster at one moment than at another; each request is for several
pictures, as requests of one alone may come no faster than a small model draws them.
"""

from __future__ import annotations

import asyncio
import collections
from typing import Any

from benchmarks.serving.asks import draw
from benchmarks.serving.checks import Check
from benchmarks.serving.client import connect, percentiles, send, send_all
from benchmarks.serving.server import Server

PICTURES = 8  # of a request
IN_TIME = 3 * PICTURES  # pictures that fit into the deadline, about
QUEUE = 256  # pictures that may wait
BURST = 3 * QUEUE // PICTURES  # requests
_TRIES = 5


async def seconds_of_a_picture(server: Server, limit: float) -> float:
    """What one takes on an idle server: the least of three."""
    async with connect(server.url) as client:
        answers = await send_all(client, [draw(n, stream=False) for n in range(3)], 1, limit)
    return min(answer.seconds for answer in answers)


async def measure(server: Server, deadline: float, limit: float) -> dict[str, Any]:
    """Sends a burst to a server with `--max_batch 1 --queue QUEUE --timeout deadline`."""
    async with connect(server.url) as client:
        for number in range(2):  # what happens once only
            await send(client, draw(number, stream=False), limit)
        asks = [draw(number, PICTURES, stream=False) for number in range(BURST)]
        # With connections that are open already all of them come at about the same time.
        await asyncio.gather(*[client.get("/health") for _ in asks])
        answers = await send_all(client, asks, BURST, limit)
        drained = await server.wait_open(0, 0, limit)
        for _ in range(_TRIES):  # another process may have held it up
            again = await send(client, draw(0, stream=False), limit)
            if again.good:
                break
    statuses = collections.Counter(answer.status for answer in answers)
    full = [answer for answer in answers if answer.status == 429]
    late = [answer for answer in answers if answer.status == 504]
    taken = statuses[200] + statuses[504]
    hints = sorted({int(a.retry_after) for a in full if (a.retry_after or "").isdigit()})
    codes = {answer.code for answer in full}, {answer.code for answer in late}
    over = max((answer.seconds - deadline for answer in late), default=0.0)
    return {
        "sent": BURST,
        "queue": QUEUE,
        "pictures_of_a_request": PICTURES,
        "deadline_s": deadline,
        "statuses": {str(status): count for status, count in statuses.items()},
        "retry_after_s": hints,
        "after_deadline_s": over,
        "refused_after": percentiles([answer.seconds for answer in full]),
        "checks": [
            Check(
                "every request is answered with 200, 429 or 504",
                set(statuses) <= {200, 429, 504},
                str(dict(statuses)),
            ),
            Check(
                "as many wait as may",
                taken >= QUEUE // PICTURES,
                f"{taken} of {BURST} with {PICTURES} pictures were taken, {QUEUE} pictures may wait",
            ),
            Check(
                "a full queue is 429 with Retry-After",
                bool(full)
                and all((a.retry_after or "").isdigit() for a in full)
                and codes[0] == {"queue_full"},
                f"{len(full)}, after {hints} s",
            ),
            Check(
                "what is too late is 504",
                bool(late) and codes[1] == {"deadline_exceeded"},
                f"{len(late)}, at most {over:.2f} s after the deadline of {deadline:.2f} s",
            ),
            Check("afterwards nothing waits", drained is not None),
            Check("and requests are answered as before", again.good, again.about()),
        ],
    }
