"""The janus_jax side of `benchmarks/sampling.py`, as `worker` runs it."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.inference.inputs import PAD, picture, prompt, question
from benchmarks.inference.meter import GIB, Meter, versions


class NativeEngines:
    """The engines as `janus_jax.inference.Janus` builds them."""

    def do_load(
        self, directory: str, dtype: str, device: str, int8: list[str], prompt_length: int
    ) -> dict[str, Any]:
        """Reads and packs; neither is part of any time."""
        began = time.perf_counter()
        import jax

        from janus_jax.config import Policy
        from janus_jax.errors import UserError
        from janus_jax.inference.fused_params import fuse_params
        from janus_jax.interop.conversion.convert import nest
        from janus_jax.interop.conversion.source import open_source

        platform = jax.devices()[0].platform
        if (platform == "gpu") != (device == "cuda"):
            raise UserError(f"jax runs on {platform}, not on {device}")
        source = open_source(directory)
        config = source.config
        weights = fuse_params(
            nest(source.arrays),  # loaded one after the other
            config,
            Policy(dtype, dtype),
            int8="weights" in int8,
            donate_params=True,
        )
        del source
        self.use(config, dtype, jax.block_until_ready(weights), int8, prompt_length)
        gc.collect()
        return {
            "seconds": time.perf_counter() - began,
            "device": self.device.device_kind,
            "cache": str(self.cache_dtype),
            "versions": versions(),
        }

    def use(
        self, config: Any, dtype: str, weights: Any, int8: Sequence[str], prompt_length: int
    ) -> None:
        """Builds the engines for packed `weights`."""
        import jax

        from janus_jax.config import Policy
        from janus_jax.inference import ImageEngine, make_sampling_params
        from janus_jax.inference.generator import ImageGenerator
        from janus_jax.inference.kv_cache import stored_dtype  # its rule, not a copy of it

        self.device = jax.devices()[0]
        if self.device.platform == "gpu" and dtype == "float32":  # no TF32, as in torch
            jax.config.update("jax_default_matmul_precision", "highest")
        self.config, self.policy, self.weights = config, Policy(dtype, dtype), weights
        self.cache_dtype = stored_dtype(self.policy, "cache" in int8)
        self.int8 = "weights" in int8
        self.engine = ImageEngine(self.config, self.policy, self.cache_dtype, int8=self.int8)
        self.generator = ImageGenerator(self.engine, self.weights, PAD, self.config.vq.num_codes)
        self.ids = prompt(prompt_length, self.config.decoder.vocab_size)[0]
        self.sampling, self.static = make_sampling_params(
            self.config.vq.codebook_size, cfg_weight=5.0
        )
        self._programs: dict[tuple, Any] = {}
        self._texts = None

    def _arrange(self, images: int, seed: int = 0) -> tuple[Any, Any]:
        import jax

        from janus_jax.inference.generator import Request

        batch = [Request(self.ids, i) for i in range(images)]
        return self.generator.arrange(batch, 1 << 20, self.static.guided, jax.random.key(seed))

    def do_gate(self, images: int, codes: str, steps: int, out: str) -> None:
        """Guided logits [steps, images, V] of forced codes [images, >= steps].

        `score` makes whole pictures. Only their number of codes matters to it, so a smaller grid
        gives the first steps of a large one.
        """
        import jax.numpy as jnp
        import numpy as np

        from janus_jax.inference import ImageEngine

        vq = self.config.vq
        side = int(np.ceil(steps**0.5))
        small = self.config.replace(vq=vq.replace(image_size=side * vq.image_size // vq.grid))
        engine = ImageEngine(small, self.policy, self.cache_dtype, int8=self.int8)
        prompts, keys = self._arrange(images)
        forced = np.zeros((keys.shape[0], side**2), np.int32)
        given = np.load(codes)[:, :steps]
        forced[:images, :steps] = given
        logits = engine.score(self.weights, prompts, jnp.asarray(forced), self.sampling)
        np.save(out, np.asarray(logits)[:images, :steps].swapaxes(0, 1))

    def do_warm(self, images: int, steps: int, timed_steps: int) -> dict[str, float]:
        """Compiles what `do_run` needs, and runs it where `steps` are as many as it will make."""
        prompts, keys = self._arrange(images)
        engine, given = self.engine, (self.weights, prompts, keys, self.sampling)
        compiled = {}
        if timed_steps == self.config.vq.num_codes:
            codes = _zeros((keys.shape[0], timed_steps))
            began = time.perf_counter()
            lowered = {"draw": engine.draw.lower(*given, static=self.static)}
            # For the phases only; they are parts of the program above.
            lowered["start"] = engine.start.lower(*given, static=self.static)
            lowered["pixels"] = engine.pixels.lower(self.weights, codes)
            with ThreadPoolExecutor() as pool:  # XLA's compiler lets go of the interpreter
                done = pool.map(lambda program: program.compile(), lowered.values())
                names = [(images, name) for name in lowered]
                self._programs = dict(zip(names, done, strict=True))
            compiled["compile"] = time.perf_counter() - began
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
        prefill = self._phase(images, "start", self.weights, prompts, keys, self.sampling)
        vq = self._phase(images, "pixels", self.weights, codes)
        decode = meter.seconds - prefill - vq
        return self._report(meter, {"prefill": prefill, "decode": decode, "vq": vq})

    def _draw(self, images: int, seed: int) -> None:
        import numpy as np

        prompts, keys = self._arrange(images, seed)
        program = self._programs[images, "draw"]
        _, pixels = program(self.weights, prompts, keys, self.sampling)
        np.asarray(pixels)

    def _phase(self, images: int, name: str, *args: Any) -> float:
        import jax

        began = time.perf_counter()
        jax.block_until_ready(self._programs[images, name](*args))
        return time.perf_counter() - began

    def _blocks(self, images: int, steps: int, seed: int) -> dict[str, float]:
        import jax

        from janus_jax.inference.image_engine import blocks

        began = time.perf_counter()
        prompts, keys = self._arrange(images, seed)
        T = prompts.ids.shape[1]
        state, codes = jax.block_until_ready(
            self.engine.start(self.weights, prompts, keys, self.sampling, static=self.static)
        )
        middle = time.perf_counter()
        for begin, end in blocks(self.config.vq.num_codes, self.engine.cache_bucket):
            if begin < steps:
                state = self.engine.grow(state, length=T + end - 1)
                state, codes = self.engine.advance(
                    self.weights,
                    state,
                    begin,
                    keys,
                    self.sampling,
                    T,
                    steps=min(end, steps) - begin,
                    static=self.static,
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

        from janus_jax.inference import kv_cache
        from janus_jax.inference.image_engine import State

        prompts, keys = self._arrange(images)
        T, shape = prompts.ids.shape[1], prompts.rows.shape
        last = T + self.config.vq.num_codes - 1
        chosen = sorted(set(np.linspace(T + steps, last, windows).round().astype(int).tolist()))
        out = []
        for length in chosen:
            cache = kv_cache.flat(
                kv_cache.empty(self.config.decoder, shape, length, self.cache_dtype)
            )
            state = State(cache, jnp.zeros(shape, jnp.int32), jnp.zeros(shape[1], jnp.int32))
            times = []
            for _ in range(1 + repeats):  # the first compiles
                began = time.perf_counter()
                first = length - T - steps + 1
                state, codes = self.engine.advance(
                    self.weights,
                    state,
                    first,
                    keys,
                    self.sampling,
                    T,
                    steps=steps,
                    static=self.static,
                )
                jax.block_until_ready(codes)
                times.append((time.perf_counter() - began) / steps * 1000)
            rows = int(np.prod(shape))
            out.append({"rows": rows, "window": length, "ms": float(np.median(times[1:]))})
        return out

    def do_understand(self, tokens: int, prompt_length: int) -> dict[str, Any]:
        """One picture and a question, `tokens` greedy tokens; the first call compiles."""
        import jax
        import numpy as np

        from janus_jax.inference import TextEngine, make_sampling_params
        from janus_jax.inference.dialogue import Dialogue

        vocab, siglip = self.config.decoder.vocab_size, self.config.siglip
        ids = question(prompt_length, vocab, siglip.num_patches)
        no_end = -1  # no token ends the answer: all of them have the same length
        if self._texts is None:
            self._texts = TextEngine(
                self.config, self.policy, vocab - 1, no_end, self.cache_dtype, int8=self.int8
            )
        sampling, static = make_sampling_params(vocab, temperature=0.0)
        keys = jax.random.split(jax.random.key(0), 1)
        dialogue = Dialogue(self._texts, self.weights, 1, sampling, static, PAD, no_end)
        shown = [[picture(siglip.image_size)]]
        began = time.perf_counter()
        pieces, first = [], None
        for piece in dialogue.turn([ids], shown, [tokens], keys):
            first = first or time.perf_counter()
            pieces.append(piece)
        end = time.perf_counter()
        # Steps come in blocks; those beyond the limit are work that was done, but no tokens.
        generated = np.concatenate(pieces, axis=1)[0, :tokens]
        return {"first": first - began, "rest": end - first, "tokens": generated.tolist()}


def _zeros(shape: tuple[int, ...]) -> Any:
    import numpy as np

    return np.zeros(shape, np.int32)
