"""A server under load: requests a second, first tokens, a long soak, /health meanwhile, a full queue, a stop.

    python -m benchmarks.serving.run --checkpoint runs/janus_tiny --out serving.json
    python -m benchmarks.serving.run --checkpoint runs/janus_tiny --sections load,lag --max_batch 16
    python -m benchmarks.serving.run --url http://127.0.0.1:8000 --pid PID --log its_stderr.log

Sections:
  load   drawing, chatting with and without a picture, and a mix, from 1, 8 and 32 clients, each of which sends its
         next request once it has an answer; the same to a server with --max_batch 1, in turns. Equal requests must
         have equal answers, byte for byte, at every load and from both servers.
  soak   mixed requests, some of them wrong, a fifth given up at a random moment. All others must end as they must;
         afterwards nothing may wait or run, memory may not have grown, nothing may have been compiled, and known
         requests must have the answers of before.
  lag    how late /health answers, asked every 10 ms by another process, while others draw and send large pictures.
  queue  more requests than may wait, with a short deadline: 429 and 504.
  stop   SIGTERM while requests are being answered.

With --checkpoint the servers are processes that are started here, up to three at a time. With --url, load has only
what --peer_url is compared with, and queue and stop are left out: they need servers of their own. For the memory
and the compilations of soak it needs --pid and --log; such a server is started with JAX_LOG_COMPILES=1.

The exit code is 1 if something is not as it must be; everything that was measured is written all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.serving import lag, load, queueing, report, soak, stopping
from benchmarks.serving.machine import facts
from benchmarks.serving.server import Server, device, started
from janus_jax.errors import RunError, UserError, nearest, run_main
from janus_jax.files import write_json

SECTIONS = ("load", "soak", "lag", "queue", "stop")  # stop is last: then the server is gone
_OWN = ("queue", "stop")  # need a server that is started here
# Of --quick, where no flag says otherwise: a minute beside compiling, with a tiny model.
_QUICK: dict[str, Any] = {
    "levels": "1,4",
    "per_client": 2,
    "rounds": 1,
    "requests": 60,
    "clients": 6,
    "seconds": 2.0,
    "max_batch": 2,
}
_WHOLE: dict[str, Any] = {
    "levels": "1,8,32",
    "per_client": 4,
    "rounds": 3,
    "requests": 1000,
    "clients": 16,
    "seconds": 20.0,
    "max_batch": 8,
}


def main() -> None:
    flags = parse_flags()
    found: dict[str, Any] = {
        "settings": _settings(flags),
        "machine": facts() | {"device": None if flags.url else device()},
        "sections": {},
    }
    try:
        with tempfile.TemporaryDirectory(prefix="janus_serving_") as scratch:
            asyncio.run(measure(flags, Path(scratch), found))
    except asyncio.CancelledError:
        raise RunError("stopped by SIGTERM; the servers that were started here are gone") from None
    finally:  # also what there was before something failed
        if found["sections"]:
            print(report.show(found))
    checks = [(name, c) for name, section in found["sections"].items() for c in section["checks"]]
    failed = [f"{name}: {check['name']}" for name, check in checks if check["passed"] is False]
    if failed:
        raise RunError(f"{len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}")


def _settings(flags: argparse.Namespace) -> dict[str, Any]:
    """The flags as far as they mean something on another machine."""
    kept = dict(vars(flags))
    for name in ("url", "pid", "log", "peer_url", "peer_pid", "out", "quiet", "wait"):
        del kept[name]
    kept["checkpoint"] = flags.checkpoint and Path(flags.checkpoint).name
    if flags.url:
        del kept["max_batch"]  # that of the running server is not known
    return kept


async def measure(flags: argparse.Namespace, scratch: Path, found: dict[str, Any]) -> None:
    """Does the sections in their order; `found` has what there is so far, also if one fails."""
    # Without this SIGTERM would leave the servers behind.
    task = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with contextlib.AsyncExitStack() as stack:
        server, peer = await _servers(flags, scratch, stack)
        found["model"] = await server.model()
        for name in flags.sections:
            found["machine"].setdefault("load_average", {})[name] = os.getloadavg()[0]
            section = await _section(name, flags, scratch, server, peer)
            section["checks"] = [check.to_dict() for check in section["checks"]]
            found["sections"][name] = section
            if flags.out:
                write_json(flags.out, found)


async def _servers(
    flags: argparse.Namespace, scratch: Path, stack: contextlib.AsyncExitStack
) -> tuple[Server, Server | None]:
    """The one that is measured, and the one that computes one by one; both are ready."""
    if flags.url:
        server = Server(flags.url, flags.pid, flags.log)
        peer = Server(flags.peer_url, flags.peer_pid) if flags.peer_url else None
    else:
        start = lambda name, batch: stack.enter_async_context(
            started(flags.checkpoint, scratch, name, ["--max_batch", str(batch)])
        )
        server = await start("server", flags.max_batch)
        # One after the other: both would compile the same programs.
        await server.wait_ready(flags.wait, flags.quiet)
        peer = await start("peer", 1) if "load" in flags.sections else None
    for one in filter(None, (server, peer)):
        await one.wait_ready(flags.wait, flags.quiet)
    return server, peer


async def _section(
    name: str, flags: argparse.Namespace, scratch: Path, server: Server, peer: Server | None
) -> dict[str, Any]:
    limit, quiet = flags.limit, flags.quiet
    if name == "load":
        return await load.measure(
            server, peer, flags.levels, flags.per_client, flags.rounds, limit, quiet
        )
    if name == "soak":
        return await soak.measure(
            server, flags.requests, flags.clients, flags.seed, limit, flags.growth, quiet
        )
    if name == "lag":
        return await lag.measure(server, lag.CLIENTS, flags.seconds, limit, quiet)
    if name == "stop":
        return await stopping.measure(server, stopping.CLIENTS, limit)
    deadline = queueing.IN_TIME * await queueing.seconds_of_a_picture(server, limit)
    small = ["--max_batch", "1", "--queue", str(queueing.QUEUE), "--timeout", f"{deadline:.3f}"]
    async with started(flags.checkpoint, scratch, "small", small) as one:
        await one.wait_ready(flags.wait, quiet)
        return await queueing.measure(one, deadline, limit)


def parse_flags() -> argparse.Namespace:
    """Reads the flags; raises UserError."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help="what to serve")
    add("--url", help="a server that runs already, instead")
    add("--pid", type=int, help="of its process, to see its memory")
    add("--log", type=Path, metavar="FILE", help="its standard error, to see what it compiles")
    add("--peer_url", metavar="URL", help="one with --max_batch 1, to compare with")
    add("--peer_pid", type=int, metavar="PID", help="of its process")
    add("--sections", default=",".join(SECTIONS), help="default: %(default)s")
    add("--quick", action="store_true", help="small numbers, where a flag does not say otherwise")
    of = lambda name: f"default: {_WHOLE[name]}, --quick: {_QUICK[name]}"
    add("--max_batch", type=int, metavar="N", help=f"of the server; {of('max_batch')}")
    add("--levels", metavar="N,N", help=f"clients of load; {of('levels')}")
    add("--per_client", type=int, metavar="N", help=f"requests of each; {of('per_client')}")
    add("--rounds", type=int, metavar="N", help=f"of load; {of('rounds')}")
    add("--requests", type=int, metavar="N", help=f"of soak; {of('requests')}")
    add("--clients", type=int, metavar="N", help=f"of soak; {of('clients')}")
    add("--seconds", type=float, help=f"of each kind of work in lag; {of('seconds')}")
    add("--seed", type=int, default=0, help="of soak; default: %(default)s")
    add(
        "--growth",
        type=float,
        default=64.0,
        metavar="MIB",
        help="of the server's memory in the last two thirds of soak, at most; default: %(default)g",
    )
    add(
        "--limit",
        type=float,
        default=240.0,
        metavar="SECONDS",
        help="after which a request is stuck; default: %(default)g",
    )
    add(
        "--wait",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="for a server to be ready; default: %(default)g",
    )
    add("--out", type=Path, metavar="FILE", help="JSON, written after each section")
    add("--quiet", action="store_true", help="no progress bars")
    flags = parser.parse_args()
    for name, value in (_QUICK if flags.quick else _WHOLE).items():
        if getattr(flags, name) is None:
            setattr(flags, name, value)
    _check(flags)
    return flags


def _check(flags: argparse.Namespace) -> None:
    if bool(flags.url) == bool(flags.checkpoint):
        raise UserError("give --checkpoint DIR, or --url of a server that runs: one of them")
    if not flags.url and (flags.pid or flags.log or flags.peer_url or flags.peer_pid):
        raise UserError(
            "--pid, --log, --peer_url and --peer_pid are about a server that runs already: --url"
        )
    if flags.log and not flags.log.is_file():
        raise UserError(f"--log {flags.log}: there is no such file")
    if flags.out and not flags.out.parent.is_dir():
        raise UserError(f"--out {flags.out}: there is no directory {flags.out.parent}")
    for name in ("max_batch", "per_client", "rounds", "requests", "clients"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} must be 1 or more, got {getattr(flags, name)}")
    for name in ("seconds", "growth", "limit", "wait"):
        if not getattr(flags, name) > 0:
            raise UserError(f"--{name} must be above 0, got {getattr(flags, name)}")
    levels = flags.levels.split(",")
    if not all(level.isdecimal() and int(level) > 0 for level in levels):
        raise UserError(f"--levels must be numbers of clients such as 1,8,32, got {flags.levels}")
    flags.levels = [int(level) for level in levels]
    named = flags.sections.split(",")
    for name in named:
        if name not in SECTIONS:
            raise UserError(
                f"--sections: no section {name!r} ({', '.join(SECTIONS)}).{nearest(name, SECTIONS)}"
            )
    flags.sections = [name for name in SECTIONS if name in named]
    if flags.url and (left := [name for name in flags.sections if name in _OWN]):
        print(f"left out, as they need servers of their own: {', '.join(left)}", file=sys.stderr)
        flags.sections = [name for name in flags.sections if name not in _OWN]


if __name__ == "__main__":
    run_main(main)
