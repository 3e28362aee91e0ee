"""The PyTorch side of `benchmarks/sampling.py`, as `worker` runs it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

from benchmarks.inference.inputs import BOS, PAD, picture, prompt, question
from benchmarks.inference.meter import GIB, Meter, versions


class Peers:
    """The contenders of `benchmarks.peers`, on one model."""

    def do_load(
        self, directory: str, dtype: str, device: str, threads: int, prompt_length: int
    ) -> dict[str, Any]:
        """Reads the model; the peers are made when they are first asked for."""
        began = time.perf_counter()
        import torch

        from benchmarks.peers.model import load_model
        from benchmarks.peers.peer import PeerUnavailable

        if device == "cuda" and not torch.cuda.is_available():
            raise PeerUnavailable("torch sees no GPU")
        if device == "cpu":
            torch.set_num_threads(threads)
        self.cuda = device == "cuda"
        self.model = load_model(directory, getattr(torch, dtype), device)
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
        from benchmarks.peers.compiled_loop import CompiledLoop
        from benchmarks.peers.loops import OfficialLoop, TransformersGenerate

        makers: dict[str, Callable] = {
            "official": OfficialLoop,
            "transformers": TransformersGenerate,
            "transformers_compiled": lambda m: TransformersGenerate(m, True),
            "loop": lambda m: CompiledLoop(m, compile=False),
            "loop_compiled": CompiledLoop,
        }
        if contender not in self._peers:
            self._peers[contender] = makers[contender](self.model)
        return self._peers[contender]

    def do_gate(self, contender: str, images: int, codes: str, steps: int, out: str) -> None:
        """As in `NativeEngines`."""
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
        """As in `NativeEngines`, by `generate`; "transformers_compiled" is its static cache."""
        import torch
        import transformers

        from benchmarks.peers.peer import PeerUnavailable

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
        generated = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=values.to(self.model.dtype),
            generation_mode="text",
            generation_config=settings,
            streamer=watch,
        )
        generated = generated[0, ids.shape[1] :].tolist()  # waits for the device
        end = time.perf_counter()
        return {"first": watch.first - began, "rest": end - watch.first, "tokens": generated}


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
