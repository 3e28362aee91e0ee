"""What every PyTorch peer offers: `Peer.run`, timed in phases, with codes and logits on request."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class PeerUnavailable(RuntimeError):
    """This peer cannot run here; the message says why."""


@dataclasses.dataclass
class Result:
    """What a run gives.

    Attributes:
      codes: [B, steps] int64, on the CPU.
      logits: [steps, B, V] guided logits in float32 on the CPU; None if not asked for.
      seconds: "prefill" until the guided logits of code 0 are there, "decode" for all that follows them
        up to the last code, "vq" from codes to uint8 pixels (absent without pixels).
      pixels: [B, height, width, 3] uint8; None if not asked for or if not all codes were made.
    """

    codes: Tensor
    logits: Tensor | None
    seconds: dict[str, float]
    pixels: np.ndarray | None


class _Clock:
    """Seconds of consecutive phases; waits for the device at their ends."""

    def __init__(self, device: torch.device):
        self._device, self.seconds = device, {}
        self._last = self._now()

    def lap(self, phase: str) -> None:
        now = self._now()
        self.seconds[phase], self._last = now - self._last, now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@dataclasses.dataclass
class Job:
    """One run, as the loops see it: `cond` and `uncond` [P], `forced` [B, steps] or None, on the device."""

    cond: Tensor
    uncond: Tensor
    n: int
    cfg_weight: float
    forced: Tensor | None
    steps: int
    clock: _Clock
    record: Callable[[Tensor], None]  # takes the guided logits [B, V] of each step


class Peer:
    """A way to draw images from a transformers Janus.

    The first run of a compiled peer compiles: make one of the same size and full length, and time the second.
    """

    def __init__(self, model: Any):
        self.model = model
        self.device, self.dtype = model.device, model.dtype
        self.num_codes = model.config.vq_config.num_patches**2

    @torch.no_grad()
    def run(
        self,
        prompt_ids: Sequence[int],
        uncond_ids: Sequence[int],
        n: int = 1,
        cfg_weight: float = 5.0,
        *,
        forced: Tensor | None = None,
        steps: int | None = None,
        want_logits: bool = False,
        pixels: bool = True,
        seed: int = 0,
    ) -> Result:
        """Draws `n` images for one prompt; temperature 1, all codes possible.

        Args:
          prompt_ids: [P] ids, BOS first and BOI last.
          uncond_ids: [P] ids, the same with pads in between.
          n: B, images.
          cfg_weight: guidance, above 1.
          forced: [B, >= steps] codes to feed instead of sampled ones; `Result.codes` repeats them.
          steps: codes an image; all by default. Caches have full length whatever it is.
          want_logits: keep the guided logits; copies them every step, so time without.
          pixels: decode the codes, if all were made.
          seed: of the sampling.
        """
        steps = self.num_codes if steps is None else steps
        if len(prompt_ids) != len(uncond_ids) or len(prompt_ids) < 3:
            raise ValueError("the prompts must have the same length, of 3 at least")
        if not 1 <= steps <= self.num_codes:
            raise ValueError(f"steps must be in 1..{self.num_codes}, not {steps}")
        if cfg_weight <= 1:
            raise ValueError(f"cfg_weight must be above 1, not {cfg_weight}")
        if forced is not None:
            forced = torch.as_tensor(forced, dtype=torch.long)[:, :steps]
            if forced.shape != (n, steps):
                raise ValueError(f"forced must be [{n}, {steps}] codes, not {tuple(forced.shape)}")
            forced = forced.to(self.device)
        cond, uncond = (torch.tensor(ids, device=self.device) for ids in (prompt_ids, uncond_ids))
        kept: list[Tensor] = []
        keep = lambda logits: kept.append(logits.to("cpu", torch.float32, copy=True))
        torch.manual_seed(seed)
        clock = _Clock(self.device)
        job = Job(
            cond, uncond, n, cfg_weight, forced, steps, clock, keep if want_logits else _ignore
        )
        codes = self._draw(job)
        clock.lap("decode")
        image = None
        if pixels and steps == self.num_codes:
            image = self.pixels(codes)
            clock.lap("vq")
        return Result(codes.cpu(), torch.stack(kept) if kept else None, clock.seconds, image)

    @torch.no_grad()
    def pixels(self, codes: Tensor) -> np.ndarray:
        """[B, num_codes] codes to [B, height, width, 3] uint8, in the dtype of the model; truncates."""
        image = self._decode_vq(codes.to(self.device)).float()
        return ((image + 1) * 127.5).clamp(0, 255).to(torch.uint8).cpu().numpy()

    def _decode_vq(self, codes: Tensor) -> Tensor:
        return self.model.decode_image_tokens(codes)

    def _draw(self, job: Job) -> Tensor:
        """[B, steps] codes; laps "prefill" and records the logits of every step."""
        raise NotImplementedError


def _ignore(logits: Tensor) -> None:
    del logits


def available(function: Callable, what: str, *args: Any, **kwargs: Any) -> Any:
    """Calls; what the compiler cannot do becomes `PeerUnavailable`."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        module = type(error).__module__
        if not module.startswith(("torch._dynamo", "torch._inductor", "torch.fx")):
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise PeerUnavailable(
            f"{what} failed: {type(error).__name__}: {reason.strip()[:300]}"
        ) from error
