"""PyTorch peers of our image sampling: what the benchmark times, and logits that the parity gate compares.

  model = build_model(PRESETS["janus-pro-1b"], torch.bfloat16, "cuda")   # or load_model(directory, ...)
  result = OfficialLoop(model).run(prompt_ids, uncond_ids, n=16)

All peers share one transformers model and its weights (`model`). `OfficialLoop` is the procedure of the official
repository, `TransformersGenerate` that of transformers; `compiled_loop.CompiledLoop` is PyTorch written for speed.
Needs torch and transformers >= 5; `python -m benchmarks.peers.check --compile` compares the peers.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.generation import ClassifierFreeGuidanceLogitsProcessor

from benchmarks.peers.peer import Job, Peer, available

# The keyword and the output field were renamed in transformers 5.
CACHE = (
    "cache"
    if "cache" in inspect.signature(transformers.LlamaModel.forward).parameters
    else "past_key_values"
)


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
