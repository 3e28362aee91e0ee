"""PyTorch peers of our image sampling: what the benchmark times, and logits that the parity gate compares.

  model = build_model(PRESETS["janus-pro-1b"], torch.bfloat16, "cuda")   # or load_model(directory, ...)
  result = OfficialLoop(model).run(prompt_ids, uncond_ids, n=16)

All peers share one transformers model and its weights. `OfficialLoop` is the procedure of the official
repository, `TransformersGenerate` that of transformers; `torch_loop.CompiledLoop` is PyTorch written for speed.
Needs torch and transformers >= 5; `python benchmarks/check_torch_peers.py --compile` compares the peers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers.generation import ClassifierFreeGuidanceLogitsProcessor
from transformers.initialization import no_init_weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from janus_jax.config import JanusConfig
from janus_jax.interop.configs.hf import config_to_hf
from janus_jax.interop.conversion.convert import to_torch
from janus_jax.interop.conversion.names import HF
from janus_jax.interop.conversion.source import open_source
from janus_jax.processing import build_word_tokenizer

# The keyword and the output field were renamed in transformers 5.
CACHE = (
    "cache"
    if "cache" in inspect.signature(transformers.LlamaModel.forward).parameters
    else "past_key_values"
)


class PeerUnavailable(RuntimeError):
    """This peer cannot run here; the message says why."""


# ---------------------------------------------------------------- the model


def build_model(
    config: JanusConfig,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    attention: str = "sdpa",
) -> Any:
    """A transformers model with random weights of unit gain, made where and as it is wanted.

    Args:
      config: the architecture; transformers cannot build all of them, see `config_to_hf`.
      dtype: of all weights; no float32 copy is ever made.
      device: where it lives; the values for one seed differ between kinds of devices.
      seed: of the weights.
      attention: "sdpa" (what transformers takes by default) or "eager".
    """
    model = _empty(config, dtype, device, attention)
    rng = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, value in module.named_parameters(recurse=False):
                value.normal_(generator=rng)
                if name == "bias":
                    value.mul_(0.1)
                elif value.ndim == 1:  # the scale of a norm
                    value.mul_(0.1).add_(1)
                elif not isinstance(module, nn.Embedding):  # [out, in, ...]
                    value.mul_(value[0].numel() ** -0.5)
    return model


def load_model(
    directory: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: str = "sdpa",
) -> Any:
    """A checkpoint of any format that we read, as a transformers model; tensor by tensor.

    On a GPU set JAX_PLATFORMS=cpu, or jax reserves most of its memory.
    """
    source = open_source(directory)
    model = _empty(source.config, dtype, device, attention)
    left = dict(model.named_parameters())
    with torch.no_grad():
        for path, array in sorted(source.arrays.items(), key=lambda item: item[1].turn):
            for name, value in to_torch(path, array.load(), HF).items():
                if value.dtype.name == "bfloat16":  # numpy's is not torch's
                    tensor = torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
                else:
                    tensor = torch.from_numpy(value)
                left.pop(name).copy_(tensor)
    if left:
        raise ValueError(f"{directory} lacks {', '.join(sorted(left)[:8])}")
    return model


def save_model(model: Any, directory: str | Path) -> None:
    """Writes config, safetensors and a small tokenizer, which `convert_torch_weights.py` reads."""
    model.save_pretrained(directory)
    tokenizer = build_word_tokenizer("a red cat what is it ?".split())
    (Path(directory) / "tokenizer.json").write_text(tokenizer.to_json())


def _empty(config: JanusConfig, dtype: torch.dtype, device: str, attention: str) -> Any:
    fields = config_to_hf(config, config.decoder.vocab_size - 1, str(dtype).removeprefix("torch."))
    hf = transformers.JanusConfig.from_dict(fields)
    with no_init_weights(), torch.device(device):
        model = transformers.JanusForConditionalGeneration._from_config(
            hf, dtype=dtype, attn_implementation=attention
        )
    return model.eval().requires_grad_(False)


# ---------------------------------------------------------------- the interface


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


# ---------------------------------------------------------------- the peers


class OfficialLoop(Peer):
    """The procedure of deepseek-ai/Janus `generation_inference.py`: one Python iteration a code, uncompiled.

    Conditional rows are even, unconditional ones odd; the cache grows by concatenation; guidance and softmax
    run in the dtype of the model.
    """

    def _draw(self, job: Job) -> Tensor:
        inner = self.model.model
        llama = inner.language_model
        rows = torch.stack([job.cond, job.uncond]).repeat(job.n, 1)  # [2B, P]
        embeds, cache = llama.get_input_embeddings()(rows), None
        codes = torch.empty((job.n, job.steps), dtype=torch.long, device=self.device)
        for i in range(job.steps):
            out = llama(inputs_embeds=embeds, use_cache=True, **{CACHE: cache})
            cache = out[CACHE]
            logits = inner.generation_head(out.last_hidden_state[:, -1])
            cond, uncond = logits[0::2], logits[1::2]
            guided = uncond + job.cfg_weight * (cond - uncond)
            if i == 0:
                job.clock.lap("prefill")
            job.record(guided)
            free = job.forced is None
            codes[:, i] = code = (
                torch.multinomial(guided.softmax(-1), 1)[:, 0] if free else job.forced[:, i]
            )
            both = code.repeat_interleave(2)[:, None]
            embeds = self.model.prepare_embeddings_for_image_generation(both)
        return codes


class TransformersGenerate(Peer):
    """`JanusForConditionalGeneration.generate(generation_mode="image")`.

    It always decodes over a static cache of full length. Its switch for guidance is off and its guidance processor
    passed instead: only so can a processor of ours see, and force, what comes out of it. Forced codes are the only
    possible ones of a greedy decode. `top_k=0` undoes the default of 50.

    Args:
      model: the model.
      static_compiled: compile the language model for single tokens, as `generate` does for text (its image path
        compiles nothing by itself), and keep one cache between runs. Raises `PeerUnavailable` if torch cannot.
    """

    def __init__(self, model: Any, static_compiled: bool = False):
        super().__init__(model)
        self._compiled, self._cache = None, {}
        if static_compiled:
            llama = model.model.language_model
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self._compiled = torch.compile(llama.forward, mode=mode, fullgraph=True, dynamic=False)

    def _draw(self, job: Job) -> Tensor:
        bos, pad, boi = (int(job.uncond[i]) for i in (0, 1, -1))
        length = len(job.cond) + self.num_codes
        watch = _Watch(job)
        guidance = ClassifierFreeGuidanceLogitsProcessor(job.cfg_weight)
        sampling = {"top_k": 0, "top_p": 1.0, "temperature": 1.0} if job.forced is None else {}
        settings = transformers.GenerationConfig(
            do_sample=job.forced is None,
            max_length=length,
            bos_token_id=bos,
            pad_token_id=pad,
            guidance_scale=1.0,
            generation_kwargs={"boi_token_id": boi},
            **sampling,
        )
        ids = job.cond.repeat(job.n, 1)
        # It makes the unconditional rows by itself: by value, not by place.
        if not torch.equal(ids[0].where((ids[0] == bos) | (ids[0] == boi), pad), job.uncond):
            raise ValueError("generate() has another unconditional prompt: BOS, pads, BOI")
        own = {}
        if self._compiled is not None:  # fresh caches would be recorded anew
            key = (job.n, length)
            if key not in self._cache:
                text = self.model.config.get_text_config(decoder=True)
                self._cache = {key: transformers.StaticCache(text, max_cache_len=length)}
            self._cache[key].reset()
            own[CACHE] = self._cache[key]
        with self._steps(job.steps), self._forward():
            return self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_mode="image",
                generation_config=settings,
                logits_processor=transformers.LogitsProcessorList([guidance, watch]),
                **own,
            )

    @contextlib.contextmanager
    def _steps(self, steps: int) -> Iterator[None]:
        """`generate` knows no number of codes but that of the config."""
        config = self.model.model.vision_model.config
        before, config.num_image_tokens = config.num_image_tokens, steps
        try:
            yield
        finally:
            config.num_image_tokens = before

    @contextlib.contextmanager
    def _forward(self) -> Iterator[None]:
        """Sends single tokens through the compiled language model; the prompt stays eager."""
        if self._compiled is None:
            yield
            return
        llama = self.model.model.language_model
        eager = llama.forward

        def forward(**kwargs):
            if kwargs["inputs_embeds"].shape[1] > 1:
                return eager(**kwargs)
            torch.compiler.cudagraph_mark_step_begin()
            return available(self._compiled, "torch.compile of the language model", **kwargs)

        llama.forward = forward
        try:
            yield
        finally:
            del llama.forward


class _Watch(transformers.LogitsProcessor):
    """Records the guided logits of `generate`, ends the phase "prefill", and forces codes."""

    def __init__(self, job: Job):
        self._job, self._i = job, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        job, i = self._job, self._i
        self._i += 1
        if i == 0:
            job.clock.lap("prefill")
        job.record(scores)
        if job.forced is None:
            return scores
        return torch.full_like(scores, -torch.inf).scatter_(1, job.forced[:, i : i + 1], 0.0)


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
