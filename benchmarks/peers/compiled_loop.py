"""The strong peer: PyTorch written for speed, in the style of gpt-fast.

Static cache, fused weights, image head only, one compiled function a code. See `peer` for the
interface and `loops` for the other peers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.peer import Job, Peer, available

_ROUND = 128  # cache lengths are multiples of it, so that prompts of similar length share graphs


class CompiledLoop(Peer):
    """PyTorch written for speed: static cache, fused weights, image head only, one compiled function a code.

    The prompt runs once and its cache is broadcast over the images. Conditional rows come first. Attention reads a
    length that grows in steps, so that most of the empty cache is never touched. Guidance runs in float32.

    Args:
      model: the model; its q, k, v and its gate, up weights become views of fused ones, so nothing is held twice.
      compile: compile the step: with CUDA graphs on a GPU, plain inductor on a CPU. Raises `PeerUnavailable`
        if torch cannot.
      bucket: step by which the cache length grows. 1 reads exactly the filled part, needs no mask and compiles
        once with a dynamic length; more compiles one graph a length. Default: 128 for CUDA graphs, else 1.
      compile_vq: compile the VQ decoder, too. Default: with `compile` on a GPU; on a CPU that takes a minute.
    """

    def __init__(
        self,
        model: Any,
        compile: bool = True,
        bucket: int | None = None,
        compile_vq: bool | None = None,
    ):
        super().__init__(model)
        cuda = self.device.type == "cuda"
        self._compile = compile
        self._bucket = bucket or (128 if compile and cuda else 1)
        self._decoder = _Decoder(model, exact=self._bucket == 1)
        self._step, self._vq = self._decoder.step, model.decode_image_tokens
        if compile:
            # A graph for each length; past the limit a full graph fails rather than run uncompiled.
            dynamo = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, 64)
            self._step = torch.compile(
                self._step,
                mode="reduce-overhead" if cuda else "default",
                fullgraph=True,
                dynamic=None if self._bucket == 1 else False,
            )
        if compile and cuda if compile_vq is None else compile_vq:
            self._vq = torch.compile(self._vq, fullgraph=True, dynamic=False)

    def _draw(self, job: Job) -> Tensor:
        start = len(job.cond)
        length = -(-(start + self.num_codes) // _ROUND) * _ROUND
        decoder = self._decoder
        decoder.allocate(job.n, length)
        weight = torch.tensor(job.cfg_weight, device=self.device)
        guided = decoder.prefill(torch.stack([job.cond, job.uncond]), weight, job.n)
        job.clock.lap("prefill")
        job.record(guided)
        code = decoder.sample(guided)
        codes = torch.empty((job.n, job.steps), dtype=torch.long, device=self.device)
        places = torch.arange(length, device=self.device)
        # Rows of a contiguous [steps, B] have the strides of sampled codes: no second graph.
        forced = None if job.forced is None else job.forced.T.contiguous()
        for i in range(job.steps):
            if i > 0:
                place = start + i - 1  # of the code that is fed
                stop = min(-(-(place + 1) // self._bucket) * self._bucket, length)
                args = (code, places[place : place + 1].clone(), places[:stop], weight)
                if self._compile:
                    if self._bucket == 1:
                        torch._dynamo.mark_dynamic(args[2], 0)
                    torch.compiler.cudagraph_mark_step_begin()
                guided, code = available(self._step, "torch.compile of the step", *args)
                job.record(guided)
            # The next replay of a CUDA graph overwrites its outputs: clone.
            code = code.clone() if forced is None else forced[i]
            codes[:, i] = code
        return codes

    def _decode_vq(self, codes: Tensor) -> Tensor:
        return available(self._vq, "torch.compile of the VQ decoder", codes)


class _Decoder(nn.Module):
    """Language model and image head over static caches.

    Args:
      model: the transformers model.
      exact: the cache ends at the current position, so that it needs no mask.
    """

    def __init__(self, model: Any, exact: bool):
        super().__init__()
        inner = model.model
        llama = inner.language_model
        self._exact = exact
        self.embed, self.norm = llama.embed_tokens, llama.norm
        self.codes, self.align = inner.generation_embeddings, inner.generation_aligner
        self.head, self._rotary = inner.generation_head, llama.rotary_emb
        self.blocks = nn.ModuleList(_Block(layer, llama.config) for layer in llama.layers)
        self._shape = (llama.config.num_key_value_heads, llama.config.head_dim)
        self._size = None

    def allocate(self, n: int, length: int) -> None:
        """Caches for `n` images and `length` positions; kept if they exist, since graphs refer to them."""
        if self._size == (n, length):
            return
        self._size = (n, length)
        heads, width = self._shape
        weight = self.embed.weight
        for block in self.blocks:
            for name in ("keys", "values"):
                cache = weight.new_zeros((2 * n, heads, length, width))
                torch._dynamo.mark_static_address(cache)  # CUDA graphs write to it in place
                block.register_buffer(name, cache, persistent=False)
        places = torch.arange(length, device=weight.device)[None]
        cos, sin = self._rotary(weight, places)  # [1, S, H], in the dtype of the model
        self.register_buffer("cos", cos[0], persistent=False)
        self.register_buffer("sin", sin[0], persistent=False)

    def prefill(self, ids: Tensor, weight: Tensor, n: int) -> Tensor:
        """ids [2, P] -> guided logits [B, V]; fills the caches of all rows."""
        x = self.embed(ids)
        size = ids.shape[1]
        for block in self.blocks:
            x = block.prefill(x, self.cos[:size], self.sin[:size], n)
        return self.apply_cfg(x[:, -1], weight).repeat(n, 1)

    def step(
        self, code: Tensor, place: Tensor, bucket: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Codes [B] at `place` [1], positions to read [W], guidance [] -> logits [B, V], codes [B]."""
        x = self.align(self.codes(code)).repeat(2, 1)[:, None]
        cos, sin = self.cos[place], self.sin[place]
        mask = None if self._exact else (bucket <= place)[None, None, None]
        for block in self.blocks:
            x = block.step(x, cos, sin, place, bucket.shape[0], mask)
        guided = self.apply_cfg(x[:, 0], weight)
        return guided, self.sample(guided)

    def apply_cfg(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """hidden [2B, D] before the last norm -> guided logits [B, V] in float32."""
        cond, uncond = self.head(self.norm(hidden)).float().chunk(2)
        return uncond + weight * (cond - uncond)

    @staticmethod
    def sample(guided: Tensor) -> Tensor:
        """Draws from the softmax of [B, V] by a race of exponentials, which needs no synchronisation."""
        return (guided.softmax(-1) / torch.empty_like(guided).exponential_(1)).argmax(-1)


class _Block(nn.Module):
    """One layer with fused projections; R rows, N query and K key/value heads of width H."""

    def __init__(self, layer: Any, config: Any):
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.before_attention = layer.input_layernorm
        self.before_mlp = layer.post_attention_layernorm
        self.qkv = _fuse(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up = _fuse(mlp.gate_proj, mlp.up_proj)
        self.out, self.down = attention.o_proj, mlp.down_proj

    def prefill(self, x: Tensor, cos: Tensor, sin: Tensor, n: int) -> Tensor:
        """x [2, P, D]: both prompts once; their keys and values go to all n rows of each."""
        q, k, v = self._project(x, cos, sin)
        for cache, new in ((self.keys, k), (self.values, v)):
            cache.unflatten(0, (2, n))[:, :, :, : x.shape[1]] = new[:, None]
        return self._finish(x, self._attend(q, k, v, is_causal=True))

    def step(
        self, x: Tensor, cos: Tensor, sin: Tensor, place: Tensor, stop: int, mask: Tensor | None
    ) -> Tensor:
        """x [R, 1, D] at `place` [1]; reads the first `stop` positions."""
        q, k, v = self._project(x, cos, sin)
        self.keys[:, :, place] = k
        self.values[:, :, place] = v
        keys, values = self.keys[:, :, :stop], self.values[:, :, :stop]
        return self._finish(x, self._attend(q, keys, values, attn_mask=mask))

    def _project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[R, T, D] -> rotated q [R, N, T, H] and k, and v [R, K, T, H]."""
        n, k, h = self.heads
        mixed = F.linear(self.before_attention(x), self.qkv)
        qk, v = mixed.unflatten(-1, (n + 2 * k, h)).transpose(1, 2).split((n + k, k), 1)
        first, second = qk.chunk(2, -1)
        qk = qk * cos + torch.cat((-second, first), -1) * sin
        return *qk.split((n, k), 1), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, **mask: Any) -> Tensor:
        n, heads, _ = self.heads
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=n != heads, **mask)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        gate, up = F.linear(self.before_mlp(x), self.gate_up).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def _fuse(*linears: nn.Linear) -> nn.Parameter:
    """The weights under each other, [sum of out, in]; the layers keep views of the result."""
    weights = [linear.weight for linear in linears]
    rows = [weight.shape[0] for weight in weights]
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    whole = weights[0].untyped_storage().nbytes() == sum(weight.nbytes for weight in weights)
    if len(storages) == 1 and whole:  # fused by another peer already
        fused = weights[0].data.as_strided((sum(rows), weights[0].shape[1]), weights[0].stride(), 0)
    else:
        fused = torch.cat([weight.data for weight in weights])
        for linear, part in zip(linears, fused.split(rows), strict=True):
            linear.weight.data = part
    return nn.Parameter(fused, requires_grad=False)
