"""One process of `benchmarks/sampling.py`: loads a model once and runs what it is told, one JSON line each.

  python benchmarks/sampling_worker.py ours|torch|probe 0,1      (cores, or "-" for all)

A request is {"do": name, ...}, the answer {"ok": ...} or {"error": kind, "message": ...}. Arrays travel as .npy
files. A worker that is not asked anything sleeps in a read of its standard input.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BOS, BOI, PAD, EOI = 1, 2, 3, 4  # random weights give no token a meaning: any ids will do
PACKAGES = ("jax", "jaxlib", "flax", "qwix", "torch", "transformers", "numpy")
GIB = 2**30


def main() -> None:
    kind, cores = sys.argv[1:3]
    if cores != "-":  # before anything makes a pool of threads
        os.sched_setaffinity(0, set(map(int, cores.split(","))))
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    worker = {"ours": Ours, "torch": Peers, "probe": Probe}[kind]()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": getattr(worker, "do_" + request.pop("do"))(**request)}
        except Exception as error:  # also of XLA and torch: the parent reports it and goes on
            answer = {"error": _kind(error), "message": f"{type(error).__name__}: {error}"[:2000]}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


def _kind(error: Exception) -> str:
    """ "unavailable" for what cannot be done here, "failed" for what should have worked."""
    missing = type(error).__name__ in ("PeerUnavailable", "UserError", "ModuleNotFoundError")
    return "unavailable" if missing else "failed"


def prompt(length: int, vocab: int) -> tuple[list[int], list[int]]:
    """A conditional prompt and its unconditional one, the same in all processes."""
    import numpy as np

    inner = np.random.default_rng(0).integers(EOI + 1, vocab - 1, length - 2).tolist()
    return [BOS, *inner, BOI], [BOS, *[PAD] * (length - 2), BOI]


def question(length: int, vocab: int, slots: int) -> list[int]:
    """Words, one picture in `slots` image tokens (the last id of the vocabulary), words."""
    ids = prompt(length, vocab)[0][1:-1]
    half = len(ids) // 2
    return [BOS, *ids[:half], BOI, *[vocab - 1] * slots, EOI, *ids[half:]]


class Meter:
    """Seconds of a region, its peak memory, and how much of our cores others had meanwhile."""

    def __enter__(self) -> Meter:
        with contextlib.suppress(OSError):  # 5 resets the peak of the resident memory
            Path("/proc/self/clear_refs").write_text("5")
        self._stat, self._own = _busy(), sum(os.times()[:2])
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self._began
        cores = len(os.sched_getaffinity(0))
        others = _busy() - self._stat - (sum(os.times()[:2]) - self._own)
        self.others = max(0.0, others) / (self.seconds * cores)
        lines = Path("/proc/self/status").read_text().splitlines()
        self.resident = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM"))


def _busy() -> float:
    """Seconds that our cores were not idle, since boot; time that the host took away counts."""
    cores = {f"cpu{i}" for i in os.sched_getaffinity(0)}
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    ticks = [map(int, row[1:9]) for row in rows if row and row[0] in cores]
    return sum(sum(t) - sum(t[3:5]) for t in map(list, ticks)) / os.sysconf("SC_CLK_TCK")


def versions() -> dict[str, str]:
    """Of the packages that matter, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Probe:
    """Measures the memory of the cores with NumPy, which favours neither side."""

    def do_bandwidth(self) -> dict[str, Any]:
        """Bytes/s of reading 1 GiB, one thread a core: the faster of two ways, best of seven."""
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np

        cores = len(os.sched_getaffinity(0))
        parts = [np.full(GIB // 4 // cores, i + 1, np.float32) for i in range(cores)]
        ways: dict[str, Callable] = {
            "dot": lambda x: np.dot(x, x),
            "or": lambda x: np.bitwise_or.reduce(x.view(np.int64)),
        }
        best = {}
        with ThreadPoolExecutor(cores) as pool:
            for name, way in ways.items():
                times = []
                for _ in range(7):
                    began = time.perf_counter()
                    list(pool.map(way, parts))
                    times.append(time.perf_counter() - began)
                best[name] = sum(p.nbytes for p in parts) / min(times)
        way = max(best, key=best.get)
        return {"bytes_per_s": best[way], "how": f"numpy {way!r} of 1 GiB on {cores} core(s)"}


# ---------------------------------------------------------------- ours


class Ours:
    """The engines as `janus_jax.sampling.Janus` builds them."""

    def do_load(
        self, directory: str, dtype: str, device: str, int8: list[str], prompt_length: int
    ) -> dict[str, Any]:
        """Reads and packs; neither is part of any time."""
        began = time.perf_counter()
        import jax

        from janus_jax.config import Policy
        from janus_jax.errors import UserError
        from janus_jax.sampling import ImageEngine, make_knobs
        from janus_jax.sampling.drawing import Drawer
        from janus_jax.sampling.kv_cache import stored_dtype  # its rule, not a copy of it
        from janus_jax.sampling.weights import pack
        from janus_jax.weights.convert import nest
        from janus_jax.weights.source import open_source

        self.device = jax.devices()[0]
        if (self.device.platform == "gpu") != (device == "cuda"):
            raise UserError(f"jax runs on {self.device.platform}, not on {device}")
        if device == "cuda" and dtype == "float32":  # no TF32, as in torch
            jax.config.update("jax_default_matmul_precision", "highest")
        source = open_source(directory)
        self.config, self.policy = source.config, Policy(dtype, dtype)
        self.cache_dtype = stored_dtype(self.policy, "cache" in int8)
        arrays = sorted(source.arrays.items(), key=lambda item: item[1].turn)
        params = nest({path: array.load() for path, array in arrays})
        del source, arrays
        # The temporary is handed over, so that the language model is never there twice.
        holder = [params]
        del params
        self.weights = jax.block_until_ready(
            pack(holder.pop(), self.config, self.policy, int8="weights" in int8)
        )
        gc.collect()
        self.engine = ImageEngine(self.config, self.policy, self.cache_dtype)
        self.drawer = Drawer(self.engine, self.weights, PAD, self.config.vq.num_codes)
        self.ids = prompt(prompt_length, self.config.decoder.vocab_size)[0]
        self.knobs, self.mode = make_knobs(self.config.vq.codebook_size, cfg_weight=5.0)
        self._programs: dict[tuple, Any] = {}
        self._texts = None
        return {
            "seconds": time.perf_counter() - began,
            "device": self.device.device_kind,
            "cache": str(self.cache_dtype),
            "versions": versions(),
        }

    def _arrange(self, images: int, seed: int = 0) -> tuple[Any, Any]:
        import jax

        from janus_jax.sampling.drawing import Request

        batch = [Request(self.ids, i) for i in range(images)]
        return self.drawer.arrange(batch, 1 << 20, self.mode.guided, jax.random.key(seed))

    def do_gate(self, images: int, codes: str, steps: int, out: str) -> None:
        """Guided logits [steps, images, V] of forced codes [images, >= steps].

        `score` makes whole pictures. Only their number of codes matters to it, so a smaller grid
        gives the first steps of a large one.
        """
        import jax.numpy as jnp
        import numpy as np

        from janus_jax.sampling import ImageEngine

        vq = self.config.vq
        side = int(np.ceil(steps**0.5))
        small = self.config.replace(vq=vq.replace(image_size=side * vq.image_size // vq.grid))
        engine = ImageEngine(small, self.policy, self.cache_dtype)
        prompts, keys = self._arrange(images)
        forced = np.zeros((keys.shape[0], side**2), np.int32)
        given = np.load(codes)[:, :steps]
        forced[:images, :steps] = given
        logits = engine.score(self.weights, prompts, jnp.asarray(forced), self.knobs)
        np.save(out, np.asarray(logits)[:images, :steps].swapaxes(0, 1))

    def do_warm(self, images: int, steps: int, timed_steps: int) -> dict[str, float]:
        """Compiles what `do_run` needs, and runs it where `steps` are as many as it will make."""
        prompts, keys = self._arrange(images)
        engine, given = self.engine, (self.weights, prompts, keys, self.knobs)
        compiled = {}
        if timed_steps == self.config.vq.num_codes:
            codes = _zeros((keys.shape[0], timed_steps))
            began = time.perf_counter()
            self._programs = {(images, "draw"): engine.draw.lower(*given, mode=self.mode).compile()}
            compiled["compile"] = time.perf_counter() - began
            # For the phases only; they are parts of the program above.
            self._programs |= {
                (images, "start"): engine.start.lower(*given, mode=self.mode).compile(),
                (images, "pixels"): engine.pixels.lower(self.weights, codes).compile(),
            }
            self._phase(images, "start", *given)
            self._phase(images, "pixels", self.weights, codes)
            if steps == timed_steps:
                self._draw(images, 0)
        else:
            began = time.perf_counter()
            self._blocks(images, timed_steps, 0)
            compiled["compile"] = time.perf_counter() - began
        return compiled | {"warm_up": time.perf_counter() - began}

    def do_run(self, images: int, steps: int, seed: int) -> dict[str, Any]:
        """Draws `images` pictures, or their first `steps` codes.

        Whole pictures come from one program, from prompt to pixels: its time, from the ids on the host to
        the pixels on the host, is "total". It has no seams to put a clock at, so the phases before and
        after the loop, which are programs of their own as well (`start`, `pixels`), are timed alone
        afterwards, and the loop is what is left. For fewer codes: `start`, then `advance` over the
        same windows as whole pictures have.
        """
        if steps < self.config.vq.num_codes:
            with Meter() as meter:
                phases = self._blocks(images, steps, seed)
            return self._report(meter, phases)
        with Meter() as meter:
            self._draw(images, seed)
        prompts, keys = self._arrange(images, seed)
        codes = _zeros((keys.shape[0], steps))
        prefill = self._phase(images, "start", self.weights, prompts, keys, self.knobs)
        vq = self._phase(images, "pixels", self.weights, codes)
        decode = meter.seconds - prefill - vq
        return self._report(meter, {"prefill": prefill, "decode": decode, "vq": vq})

    def _draw(self, images: int, seed: int) -> None:
        import numpy as np

        prompts, keys = self._arrange(images, seed)
        program = self._programs[images, "draw"]
        _, pixels = program(self.weights, prompts, keys, self.knobs)
        np.asarray(pixels)

    def _phase(self, images: int, name: str, *args: Any) -> float:
        import jax

        began = time.perf_counter()
        jax.block_until_ready(self._programs[images, name](*args))
        return time.perf_counter() - began

    def _blocks(self, images: int, steps: int, seed: int) -> dict[str, float]:
        import jax

        from janus_jax.sampling.image_engine import blocks

        began = time.perf_counter()
        prompts, keys = self._arrange(images, seed)
        T = prompts.ids.shape[1]
        state, codes = jax.block_until_ready(
            self.engine.start(self.weights, prompts, keys, self.knobs, mode=self.mode)
        )
        middle = time.perf_counter()
        for begin, end in blocks(self.config.vq.num_codes, self.engine.window):
            if begin < steps:
                state = self.engine.grow(state, length=T + end - 1)
                state, codes = self.engine.advance(
                    self.weights,
                    state,
                    begin,
                    keys,
                    self.knobs,
                    T,
                    steps=min(end, steps) - begin,
                    mode=self.mode,
                )
        jax.block_until_ready(codes)
        return {"prefill": middle - began, "decode": time.perf_counter() - middle}

    def _report(self, meter: Meter, phases: dict[str, float]) -> dict[str, Any]:
        stats = self.device.memory_stats() if self.device.platform != "cpu" else None
        peak = (stats or {}).get("peak_bytes_in_use", meter.resident)
        return {"total": meter.seconds, **phases, "peak": peak, "others": meter.others}

    def do_release(self) -> None:
        """Between two numbers of pictures."""
        self._programs = {}
        gc.collect()

    def do_bandwidth(self) -> dict[str, Any]:
        """Bytes/s of a copy on the device, read and written."""
        import jax
        import jax.numpy as jnp

        x = jnp.ones(GIB, jnp.float32)  # 4 GiB
        copy = jax.jit(lambda x: x + 1)
        times = []
        for _ in range(7):
            began = time.perf_counter()
            jax.block_until_ready(copy(x))
            times.append(time.perf_counter() - began)
        return {"bytes_per_s": 2 * x.nbytes / min(times[1:]), "how": "jax, 4 GiB + 1 on the device"}

    def do_fit(self, images: int, windows: int, steps: int, repeats: int) -> list[dict[str, float]]:
        """Decode ms/step over `windows` lengths of the cache, from the shortest that makes sense."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        from janus_jax.sampling import kv_cache
        from janus_jax.sampling.image_engine import State

        prompts, keys = self._arrange(images)
        T, shape = prompts.ids.shape[1], prompts.rows.shape
        last = T + self.config.vq.num_codes - 1
        chosen = sorted(set(np.linspace(T + steps, last, windows).round().astype(int).tolist()))
        out = []
        for window in chosen:
            cache = kv_cache.flat(
                kv_cache.empty(self.config.decoder, shape, window, self.cache_dtype)
            )
            state = State(cache, jnp.zeros(shape, jnp.int32), jnp.zeros(shape[1], jnp.int32))
            times = []
            for _ in range(1 + repeats):  # the first compiles
                began = time.perf_counter()
                first = window - T - steps + 1
                state, codes = self.engine.advance(
                    self.weights, state, first, keys, self.knobs, T, steps=steps, mode=self.mode
                )
                jax.block_until_ready(codes)
                times.append((time.perf_counter() - began) / steps * 1000)
            rows = int(np.prod(shape))
            out.append({"rows": rows, "window": window, "ms": float(np.median(times[1:]))})
        return out

    def do_understand(self, tokens: int, prompt_length: int) -> dict[str, Any]:
        """One picture and a question, `tokens` greedy tokens; the first call compiles."""
        import jax
        import numpy as np

        from janus_jax.sampling import TextEngine, make_knobs
        from janus_jax.sampling.dialogue import Dialogue

        vocab, siglip = self.config.decoder.vocab_size, self.config.siglip
        ids = question(prompt_length, vocab, siglip.num_patches)
        nobody = -1  # no token ends the answer: all of them have the same length
        if self._texts is None:
            self._texts = TextEngine(self.config, self.policy, vocab - 1, nobody, self.cache_dtype)
        knobs, mode = make_knobs(vocab, temperature=0.0)
        keys = jax.random.split(jax.random.key(0), 1)
        dialogue = Dialogue(self._texts, self.weights, 1, knobs, mode, PAD, nobody)
        shown = [[picture(siglip.image_size)]]
        began = time.perf_counter()
        pieces, first = [], None
        for piece in dialogue.turn([ids], shown, [tokens], keys):
            first = first or time.perf_counter()
            pieces.append(piece)
        end = time.perf_counter()
        # Steps come in blocks; those beyond the limit are work that was done, but no tokens.
        said = np.concatenate(pieces, axis=1)[0, :tokens]
        return {"first": first - began, "rest": end - first, "tokens": said.tolist()}


def _zeros(shape: tuple[int, ...]) -> Any:
    import numpy as np

    return np.zeros(shape, np.int32)


def picture(size: int) -> Any:
    """uint8 [size, size, 3], the same in all processes."""
    import numpy as np

    return np.random.default_rng(1).integers(0, 256, (size, size, 3)).astype(np.uint8)


# ---------------------------------------------------------------- PyTorch


class Peers:
    """The contenders of `torch_peers`, on one model."""

    def do_load(
        self, directory: str, dtype: str, device: str, threads: int, prompt_length: int
    ) -> dict[str, Any]:
        """Reads the model; the peers are made when they are first asked for."""
        began = time.perf_counter()
        import torch

        sys.path.insert(0, str(Path(__file__).resolve().parent))
        import torch_peers

        if device == "cuda" and not torch.cuda.is_available():
            raise torch_peers.PeerUnavailable("torch sees no GPU")
        if device == "cpu":
            torch.set_num_threads(threads)
        self.cuda = device == "cuda"
        self.model = torch_peers.load_model(directory, getattr(torch, dtype), device)
        gc.collect()
        self.prompts = prompt(prompt_length, self.model.config.text_config.vocab_size)
        self._peers: dict[str, Any] = {}
        return {
            "seconds": time.perf_counter() - began,
            "device": torch.cuda.get_device_name() if self.cuda else "cpu",
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def _peer(self, contender: str) -> Any:
        import torch_peers

        makers: dict[str, Callable] = {
            "official": torch_peers.OfficialLoop,
            "transformers": torch_peers.TransformersGenerate,
            "transformers_compiled": lambda m: torch_peers.TransformersGenerate(m, True),
            "loop": lambda m: torch_peers.CompiledLoop(m, compile=False),
            "loop_compiled": torch_peers.CompiledLoop,
        }
        if contender not in self._peers:
            self._peers[contender] = makers[contender](self.model)
        return self._peers[contender]

    def do_gate(self, contender: str, images: int, codes: str, steps: int, out: str) -> None:
        """As in `Ours`."""
        import numpy as np

        forced = np.load(codes)
        result = self._peer(contender).run(
            *self.prompts, images, forced=forced, steps=steps, want_logits=True, pixels=False
        )
        np.save(out, result.logits.numpy())

    def do_warm(
        self, contender: str, images: int, steps: int, timed_steps: int
    ) -> dict[str, float]:
        """Two runs of `steps` codes; what the first one takes longer is compilation, if it compiles."""
        import torch

        peer = self._peer(contender)
        took = []
        for seed in range(2):
            began = time.perf_counter()
            peer.run(*self.prompts, images, steps=steps, seed=seed)
            if steps < timed_steps == peer.num_codes:
                peer.pixels(torch.zeros((images, peer.num_codes), dtype=torch.long))
            took.append(time.perf_counter() - began)
        compiled = {"compile": took[0] - took[1]} if contender.endswith("_compiled") else {}
        return compiled | {"warm_up": sum(took)}

    def do_run(self, contender: str, images: int, steps: int, seed: int) -> dict[str, Any]:
        """Draws `images` pictures, or their first `steps` codes."""
        import torch

        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        with Meter() as meter:
            result = self._peer(contender).run(*self.prompts, images, steps=steps, seed=seed)
        peak = torch.cuda.max_memory_allocated() if self.cuda else meter.resident
        return {"total": meter.seconds, **result.seconds, "peak": peak, "others": meter.others}

    def do_release(self) -> None:
        """Between two numbers of pictures: gives caches back to the device."""
        import torch

        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def do_bandwidth(self) -> dict[str, Any]:
        """Bytes/s of a copy on the device, read and written."""
        import torch

        a = torch.ones(GIB // 2, device="cuda")  # 2 GiB
        b = torch.empty_like(a)
        times = []
        for _ in range(7):
            torch.cuda.synchronize()
            began = time.perf_counter()
            b.copy_(a)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return {"bytes_per_s": 2 * a.nbytes / min(times[1:]), "how": "torch, device copy of 2 GiB"}

    def do_understand(self, contender: str, tokens: int, prompt_length: int) -> dict[str, Any]:
        """As in `Ours`, by `generate`; "transformers_compiled" is its static cache."""
        import torch
        import transformers
        from torch_peers import PeerUnavailable

        static = contender == "transformers_compiled"
        if static and not self.cuda:
            raise PeerUnavailable("generate() compiles text on GPUs only")
        config, watch = self.model.config, _First()
        vision = config.vision_config
        slots = (vision.image_size // vision.patch_size) ** 2
        ids = torch.tensor([question(prompt_length, config.text_config.vocab_size, slots)])
        ids = ids.to(self.model.device)
        pixels = torch.from_numpy(picture(vision.image_size)).permute(2, 0, 1)[None]
        settings = transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=PAD,
            bos_token_id=BOS,
            **({"cache_implementation": "static"} if static else {}),
        )
        began = time.perf_counter()
        values = (pixels.to(self.model.device).float() / 255 - 0.5) / 0.5
        said = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=values.to(self.model.dtype),
            generation_mode="text",
            generation_config=settings,
            streamer=watch,
        )
        said = said[0, ids.shape[1] :].tolist()  # waits for the device
        end = time.perf_counter()
        return {"first": watch.first - began, "rest": end - watch.first, "tokens": said}


class _First:
    """A streamer that notes when the first token is there: Janus drops logits processors of text."""

    def __init__(self):
        self._calls, self.first = 0, None

    def put(self, value: Any) -> None:
        """The first call brings the prompt, the second a token that is on the host."""
        del value
        self._calls += 1
        if self._calls == 2:
            self.first = time.perf_counter()

    def end(self) -> None:
        """Nothing is held back."""


if __name__ == "__main__":
    main()
