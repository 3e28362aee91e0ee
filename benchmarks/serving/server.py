"""The server that is measured: a process that is started here, or one that runs already."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import httpx
from tqdm import tqdm

from benchmarks.paths import ROOT, importable
from benchmarks.serving.client import connect
from janus_jax.errors import RunError, UserError

_COMPILED = b"Finished XLA compilation"  # JAX_LOG_COMPILES=1 has a line of each, also of one out of the cache
_OF_JAX = re.compile(r"^(WARNING|INFO|DEBUG):jax")
_GAUGE = re.compile(r'^janus_engine_(\w+)\{kind="(\w+)"\} (\S+)$', re.MULTILINE)


class Server:
    """A server and what can be seen of it from outside.

    Args:
      url: of it, without /v1.
      pid: of its process, if that runs on this machine.
      log: its standard error, with JAX_LOG_COMPILES=1.
    """

    def __init__(self, url: str, pid: int | None = None, log: Path | None = None):
        self.url, self.pid, self._log = url.rstrip("/"), pid, log
        self.process: subprocess.Popen | None = None
        self._ready_at = 0  # bytes of the log then
        self.programs: int | None = None  # that were compiled before

    async def wait_ready(self, limit: float, quiet: bool = True) -> None:
        """Waits until everything is compiled.

        Raises:
          RunError: the process has ended, or `limit` seconds are over.
          UserError: it cannot serve what it was given; a server that runs already cannot be reached.
        """
        end = time.monotonic() + limit
        async with connect(self.url) as client:
            with tqdm(desc="the server compiles", unit="program", disable=quiet or None) as bar:
                while not await self._is_ready(client):
                    if self.process is not None and (code := self.process.poll()) is not None:
                        # 2 is what its flags and the checkpoint were to blame for: ours, too.
                        kind = UserError if code == 2 else RunError
                        raise kind(f"the server has ended: {self._last_words()}")
                    if time.monotonic() > end:
                        raise RunError(f"the server was not ready after {limit:.0f} s: --wait")
                    await asyncio.sleep(0.3)
                    bar.update((self._count(0) or 0) - bar.n)
        self.programs = self._count(0)
        self._ready_at = self._log.stat().st_size if self._log else 0

    def compiled_since_ready(self) -> int | None:
        """Programs; None where there is no log."""
        return self._count(self._ready_at)

    def resident(self) -> float | None:
        """MiB of the process in memory; None where it cannot be seen."""
        fields = self._proc("statm")
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if fields else None

    def cpu(self) -> float | None:
        """Seconds of cores that the process took so far."""
        fields = self._proc("stat")
        # The name in brackets may have spaces: the last bracket ends it.
        times = " ".join(fields or ()).rpartition(") ")[2].split()[11:13]
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK") if fields else None

    async def stats(self) -> dict[tuple[str, str], float]:
        """The engine's numbers of /metrics: (name, kind) -> value."""
        async with connect(self.url) as client:
            text = (await client.get("/metrics")).text
        return {(name, kind): float(value) for name, kind, value in _GAUGE.findall(text)}

    async def model(self) -> str:
        """Its name."""
        async with connect(self.url) as client:
            return (await client.get("/v1/models")).json()["data"][0]["id"]

    async def open_jobs(self) -> float:
        """Jobs that wait or run."""
        stats = await self.stats()
        if ("waiting", "draw") not in stats:
            raise UserError(f"{self.url}/metrics has no janus_engine_waiting: is it janus-serve?")
        return sum(value for (name, _), value in stats.items() if name in ("waiting", "running"))

    async def wait_open(self, least: int, most: int, limit: float) -> float | None:
        """Waits until so many jobs are open; the seconds that this took, None past the limit."""
        began = time.monotonic()
        while not least <= await self.open_jobs() <= most:
            if time.monotonic() - began > limit:
                return None
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    async def wait_exit(self, limit: float) -> int | None:
        """The exit code; None if it has not ended within the limit."""
        end = time.monotonic() + limit
        while (code := self.process.poll()) is None and time.monotonic() < end:
            await asyncio.sleep(0.01)
        return code

    async def _is_ready(self, client: httpx.AsyncClient) -> bool:
        try:
            answer = await client.get("/ready")
        except httpx.TransportError as error:
            if self.process is None:
                raise UserError(
                    f"--url {self.url}: nothing answers there ({error or type(error).__name__})"
                ) from None
            return False
        if answer.status_code not in (200, 503):
            raise UserError(f"{self.url}/ready answers {answer.status_code}: is it janus-serve?")
        return answer.status_code == 200

    def _proc(self, name: str) -> list[str] | None:
        try:
            return Path(f"/proc/{self.pid}/{name}").read_text().split() if self.pid else None
        except OSError:
            return None

    def _count(self, start: int) -> int | None:
        if self._log is None:
            return None
        with open(self._log, "rb") as file:
            file.seek(start)
            return file.read().count(_COMPILED)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log else []
        said = [line for line in lines if line.strip() and not _OF_JAX.match(line)]
        return said[-1] if said else f"exit code {self.process.returncode}"


@contextlib.asynccontextmanager
async def started(
    checkpoint: str,
    scratch: Path,
    name: str,
    flags: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Server]:
    """A server of a checkpoint in a process of its own, not ready yet; it is killed at the end.

    Args:
      checkpoint: what `--checkpoint` takes.
      scratch: a directory for its log.
      name: of the log.
      flags: further ones of the server.
      environment: further variables.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Two servers share one device here, so that none may take all of its memory at once.
    env = {**os.environ, "JAX_LOG_COMPILES": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    env.pop("JANUS_API_KEY", None)
    env |= environment or {}
    command = [sys.executable, "-m", "janus_jax.serving", "--checkpoint", checkpoint, "--quiet"]
    command += ["--port", str(port), *flags]
    log = scratch / f"{name}.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, env=importable(env), stdout=subprocess.DEVNULL, stderr=file
        )
    server = Server(f"http://127.0.0.1:{port}", process.pid, log)
    server.process = process
    try:
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


def device() -> str | None:
    """What a server on this machine computes on, asked in a process of its own."""
    code = "import jax; print(jax.devices()[0].device_kind)"
    env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or None
