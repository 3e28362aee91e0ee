"""Serves a checkpoint over HTTP, in the form of OpenAI's API: pictures, answers, streams.

  python -m janus_jax.serving --checkpoint runs/janus_tiny
  python -m janus_jax.serving --checkpoint models/janus-pro-1b --port 8080 --max_batch 16 --int8 weights
  JANUS_API_KEY=secret python -m janus_jax.serving --checkpoint models/janus-pro-1b --host 0.0.0.0

  curl http://127.0.0.1:8000/v1/images/generations -H "Content-Type: application/json" \\
    -d '{"prompt": "a red apple on the left", "seed": 1}'

With `pip install "janus-jax[ui]"` there is a page for browsers, too, at /ui.
Requests that come together are computed together. Without a key it can only be reached from this machine.
SIGTERM or Ctrl-C: no new requests, and those that are there are answered first; a second one does not wait.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from janus_jax.cli.parser import Parser, step_of_run
from janus_jax.console import printable
from janus_jax.errors import RunError, UserError, run_main

if TYPE_CHECKING:
    from janus_jax.inference import Janus
    from janus_jax.serving.engine import ServingEngine
    from janus_jax.serving.http.image_hosts import ImageHost
    from janus_jax.serving.http.limits import Limits
    from janus_jax.serving.http.schemas import ModelCard

# Seconds after which a thread of Python that computes lets another one run. The event loop gives way at each of
# its system calls, and would wait so long for the engine's thread every time.
_SWITCH = 0.0005
_DRAIN = 10.0  # seconds above --timeout, after which a stop does not wait any more
_SAYING = 2.0  # seconds for the answers of requests that are cancelled when a stop may not wait
_BACKLOG = 2048  # connections that wait to be taken
_CHECKPOINT = "runs/janus_tiny"
_SIZES = (1, 2, 4, 8, 16, 32)


def parse_flags() -> argparse.Namespace:
    """Reads the flags; raises UserError for what can be seen to be wrong without the model."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", metavar="DIR|ID", default=_CHECKPOINT, help="default: %(default)s")
    add("--adapter", metavar="DIR|ID", help="a LoRA adapter for it, as PEFT writes it")
    add(
        "--step",
        type=step_of_run,
        metavar="N|best",
        help="of a training run; best: that with the lowest held-out loss; default: the newest",
    )
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: float32 on a CPU, else bfloat16",
    )
    add("--int8", default="", metavar="PARTS", help="'weights', 'cache' or 'weights,cache'")
    add("--mesh", default="", metavar="SIZES", help="several devices, such as data=2,tensor=4")
    add(
        "--memory_gb",
        type=float,
        metavar="GB",
        help="of all batches together, beside the weights; default: what is free",
    )
    add("--host", default="127.0.0.1", help="default: %(default)s, this machine only")
    add("--port", type=int, default=8000, help="0 takes a free one; default: %(default)s")
    add(
        "--max_batch",
        type=int,
        default=8,
        metavar="N",
        help=f"most pictures or answers at once, {_SIZES[0]} to {_SIZES[-1]}; default: %(default)s",
    )
    add(
        "--context",
        type=int,
        default=4096,
        metavar="TOKENS",
        help="of the longest conversation with its pictures and answer, as far as the model has positions; "
        "less takes less memory; default: %(default)s",
    )
    add(
        "--queue",
        type=int,
        default=64,
        metavar="N",
        help="pictures, and answers, that may wait; further requests get 429; default: %(default)s",
    )
    add(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="of a request, with its wait; then 504; default: %(default)s",
    )
    add(
        "--api-key",
        metavar="KEY",
        help="wanted of every request but /health; rather JANUS_API_KEY, which other users do not see",
    )
    add(
        "--insecure",
        action="store_true",
        help="without a key: let in other machines (--host), and names other than localhost (a proxy)",
    )
    add(
        "--allow-image-host",
        action="append",
        default=[],
        metavar="HOST",
        help="of https: URLs of pictures that are fetched, such as images.example.org, *.example.org, HOST:PORT; "
        "may be repeated; default: none is",
    )
    add("--no-ui", action="store_true", help="without the page for browsers at /ui")
    add("--quiet", action="store_true", help="no progress bar while programs are compiled")
    flags = parser.parse_args()
    if flags.api_key is None:
        flags.api_key = os.environ.get("JANUS_API_KEY")
    for name, least, most in (
        ("port", 0, 65535),
        ("max_batch", _SIZES[0], _SIZES[-1]),
        ("context", 64, 10**6),
        ("queue", 1, 10**6),
    ):
        if not least <= getattr(flags, name) <= most:
            given = getattr(flags, name)
            raise UserError(f"--{name} must be from {least} to {most}, got {given}")
    if not 0 < flags.timeout < math.inf:
        raise UserError(f"--timeout must be above 0 and finite, got {flags.timeout}")
    if flags.memory_gb is not None and not 0 < flags.memory_gb * 2**30 < math.inf:
        raise UserError(f"--memory_gb must be above 0 and finite, got {flags.memory_gb}")
    return flags


def listen(host: str, port: int) -> socket.socket:
    """A socket that has the address. Connections to it wait until a server takes them.

    It listens at once: several sockets could be bound to one address until then, and each of several servers that
    start together would believe that it is alone.

    Raises:
      UserError: there is no such address, or it is taken.
    """
    where = f"{printable(host)}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        return listener
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen on {where}: {why}; give another --host or --port"
        ) from error


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the process at once, also where it is process 1 of a container, which the kernel spares."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def load(flags: argparse.Namespace) -> Janus:
    """The model. Raises UserError for what is wrong with it or with the flags."""
    from janus_jax.config import Policy
    from janus_jax.inference import Janus, enable_compilation_cache
    from janus_jax.parallel import parse_mesh

    mesh = parse_mesh(flags.mesh, "--mesh")
    if flags.checkpoint == _CHECKPOINT and not os.path.exists(
        _CHECKPOINT
    ):  # which nobody may have asked for
        raise UserError(
            f"there is no {_CHECKPOINT} here: give --checkpoint DIR, or train it (janus-train --config "
            "configs/janus_tiny.py)"
        )
    enable_compilation_cache()
    return Janus.load(
        flags.checkpoint,
        step=flags.step,
        policy=Policy.auto(flags.dtype),
        int8=[part for part in flags.int8.split(",") if part],
        mesh=mesh,
        memory_limit=None if flags.memory_gb is None else int(flags.memory_gb * 2**30),
        adapter=flags.adapter,
        max_batch=flags.max_batch,
    )


def describe(janus: Janus) -> ModelCard:
    """What the protocol says of a model."""
    from janus_jax.serving.http.schemas import ModelCard

    side = janus.config.vq.image_size
    return ModelCard(
        name=printable(janus.config.name),
        width=side,
        height=side,
        input_size=janus.config.siglip.image_size,
        created=int(time.time()),
        rows=janus.config.vq.grid,
        cfg_weight=janus.processor.config.cfg_weight,
        temperature=janus.processor.config.temperature,
    )


def has_page(flags: argparse.Namespace) -> bool:
    """Whether there will be the page for browsers; says why not if nobody has asked for that."""
    from janus_jax.serving.page.mounting import is_installed

    if flags.no_ui or is_installed():
        return not flags.no_ui
    hint = 'no page at /ui: it needs pip install "janus-jax[ui]"; --no-ui does not ask for it'
    print(hint, file=sys.stderr, flush=True)
    return False


def say_what_fits(places: tuple[int, int], wanted: int) -> None:
    """Says so if memory is short: with fewer at once than were asked for, all wait longer."""
    if min(places) >= wanted:
        return
    pictures, answers = places
    line = (
        f"memory is short: {pictures} picture(s) and {answers} answer(s) are computed together, not {wanted}; "
        "less --context, --int8 or more --memory_gb make room"
    )
    print(line, file=sys.stderr, flush=True)


def ready_line(address: tuple[Any, ...], key: str | None, name: str, page: bool = False) -> str:
    """What to try, at the socket's address."""
    host, port = address[:2]
    base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    header = ' -H "Authorization: Bearer $JANUS_API_KEY"' if key is not None else ""
    ui = f", and in a browser at {base}/ui" if page else ""
    return (
        f"{name} is ready at {base}/v1{ui}; try\n"
        f'  curl {base}/v1/images/generations{header} -H "Content-Type: application/json" '
        """-d '{"prompt": "a red apple on the left"}'"""
    )


def run_server(
    engine: ServingEngine,
    card: ModelCard,
    limits: Limits,
    flags: argparse.Namespace,
    listener: socket.socket,
    image_hosts: Sequence[ImageHost] = (),
) -> None:
    """Serves until SIGTERM or Ctrl-C, and until what is running then is answered.

    Raises:
      UserError: what `warm_up` raised.
      RunError: the engine has stopped by itself.
    """
    import uvicorn

    from janus_jax.serving.http.app import create_app
    from janus_jax.serving.http.fetching import Fetcher
    from janus_jax.serving.http.security import is_loopback

    class Server(uvicorn.Server):
        hurried = False  # somebody does not want to wait

        def handle_exit(self, *args: Any) -> None:
            if not self.should_exit:
                say = (
                    "stopping: what is running is answered first; Ctrl-C again does not wait for it"
                )
                print(say, file=sys.stderr, flush=True)
                super().handle_exit(*args)
            elif not self.hurried:
                self.hurried = True
                print("stopping now", file=sys.stderr, flush=True)
            else:
                super().handle_exit(*args)

        async def on_tick(self, counter: int) -> bool:
            return await super().on_tick(counter) or engine.failed  # nothing is answered any more

        async def shutdown(self, *args: Any, **options: Any) -> None:
            app.state.stop_idle()
            hurrying = asyncio.create_task(self.hurry())
            await super().shutdown(*args, **options)
            hurrying.cancel()

        async def hurry(self) -> None:
            """When somebody does not want to wait: what is running is cancelled, and says so to its clients."""
            while not self.hurried:
                await asyncio.sleep(0.1)
            threading.Thread(target=engine.close, args=(False,), daemon=True).start()
            await asyncio.sleep(_SAYING)
            for connection in list(self.server_state.connections):  # of those that do not read it
                connection.transport.abort()

    page = has_page(flags)
    app = create_app(
        engine,
        card,
        limits,
        flags.api_key,
        local_only=is_loopback(flags.host) and not flags.insecure,
        fetcher=Fetcher(image_hosts, limits),
        page=page,
    )
    server = Server(
        uvicorn.Config(
            app,
            lifespan="on",
            log_level="warning",
            log_config=None,  # its own would close the handlers of others, such as absl's, which hold stderr
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=math.ceil(flags.timeout + _DRAIN),
        )
    )
    failed: list[BaseException] = []
    address = listener.getsockname()

    def warm_up() -> None:
        try:
            engine.warm_up(
                lambda programs: tqdm(
                    programs, unit="program", desc="compiling", disable=flags.quiet or None
                )
            )
        except BaseException as error:
            failed.append(error)
            server.should_exit = True
            return
        if engine.ready:
            line = ready_line(address, flags.api_key, card.name, page)
            print(line, flush=True)

    sys.setswitchinterval(_SWITCH)
    # uvicorn raises the signal again once it has stopped; by then all is done.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    warming = threading.Thread(target=warm_up, name="warm-up", daemon=True)
    warming.start()
    server.run(sockets=[listener])
    warming.join(_DRAIN)
    if failed:
        raise failed[0]
    if engine.failed:
        raise RunError("the engine has stopped by a fault, which is said above: start again")


def main() -> None:
    flags = parse_flags()
    try:
        import httpx  # noqa: F401
        import idna  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f'{error.name} is not installed: pip install "janus-jax[serve]"') from error
    from janus_jax.serving.http.image_hosts import parse_image_host
    from janus_jax.serving.http.limits import Limits
    from janus_jax.serving.http.security import check_binding

    check_binding(flags.host, flags.api_key, flags.insecure)
    image_hosts = [parse_image_host(text) for text in flags.allow_image_host]
    listener = listen(flags.host, flags.port)  # before the model is read for minutes
    sizes = [size for size in _SIZES if size < flags.max_batch] + [flags.max_batch]
    limits = Limits(seconds=flags.timeout)
    with ended_by_sigterm():  # there is nobody to answer yet
        from janus_jax.serving.engine import ServingEngine

        janus = load(flags)
        engine = ServingEngine(janus, sizes=sizes, context=flags.context, max_waiting=flags.queue)
        say_what_fits(engine.places, flags.max_batch)
    run_server(engine, describe(janus), limits, flags, listener, image_hosts)


def command() -> None:
    """Entry point of `janus-serve` and of `python -m janus_jax.serving`."""
    run_main(main)
