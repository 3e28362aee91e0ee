"""The PyTorch side of `benchmarks/training.py`: transformers' modules, put together as a training step.

Kinds of attention, each plain and compiled:

  sdpa    scaled_dot_product_attention with the mask of packed rows, [B, 1, T, T]
  flex    flex_attention with a block mask, which skips what lies outside of a segment
  varlen  the segments by themselves: varlen_attn (Flash Attention) on a GPU, on a CPU one causal
          scaled_dot_product_attention a segment, whose places the compiler knows

In bfloat16 the parameters and the optimizer stay in float32, products run under autocast, and what layers add to
is in bfloat16, as in ours. Heads run at their targets only, without padding.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from benchmarks.inference.meter import Meter, versions
from benchmarks.peers.model import load_model
from benchmarks.peers.peer import PeerUnavailable
from janus_jax.batch import TOKEN_GEN, TOKEN_UND
from janus_jax.freeze_sets import TRAINABLE

# Ours -> where transformers has it.
MODULES = {
    "siglip": ("model.vision_model",),
    "und_adaptor": ("model.aligner",),
    "gen_embed": ("model.generation_embeddings",),
    "gen_adaptor": ("model.generation_aligner",),
    "image_head": ("model.generation_head",),
    "decoder": ("model.language_model", "lm_head"),
}
_BLOCK = 128  # of flex_attention's masks


class TorchSteps:
    """Every contender of PyTorch: they share parameters and optimizer."""

    def do_load(
        self,
        directory: str,
        rows: str,
        dtype: str,
        device: str,
        stage: str,
        remat: str,
        learning_rate: float,
        threads: int,
    ) -> dict[str, Any]:
        """Reads weights and rows; parameters and optimizer are in float32, arithmetic in `dtype`."""
        began = time.perf_counter()
        if device == "cuda" and not torch.cuda.is_available():
            raise PeerUnavailable("torch sees no GPU")
        if remat == "dots":
            raise PeerUnavailable("transformers keeps all activations or those of no layer")
        if device == "cpu":
            torch.set_num_threads(threads)
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        self.directory, self.learning_rate = directory, learning_rate
        self.model = load_model(directory, torch.float32, device)
        self.model.train()
        if remat == "full":
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        names = tuple(f"{name}." for group in TRAINABLE[stage] for name in MODULES[group])
        self.trained = [p for name, p in self.model.named_parameters() if name.startswith(names)]
        for parameter in self.trained:
            parameter.requires_grad_(True)
        with np.load(rows) as batch:
            self.batch = prepare(dict(batch), self.device)
        for kind, attention in (("varlen", varlen), ("segments", segments)):
            transformers.AttentionInterface.register(kind, attention)
        self._functions: dict[str, Any] = {}
        self._reset()
        return {
            "seconds": time.perf_counter() - began,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def _reset(self) -> None:
        """Weights as they were read, and a new optimizer: contenders start equal."""
        fresh = load_model(self.directory, torch.float32, str(self.device))
        with torch.no_grad():
            for own, read in zip(self.model.parameters(), fresh.parameters(), strict=True):
                own.copy_(read)
        del fresh
        self.optimizer = None
        gc.collect()
        self.optimizer = torch.optim.AdamW(
            self.trained, self.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )

    def _select(self, contender: str) -> Any:
        """The loss as this contender computes it; its attention is set in the model."""
        kind, _, compiled = contender.partition("_")
        packed = "varlen" if self.device.type == "cuda" else "segments"
        name = {"sdpa": "sdpa", "flex": "flex_attention", "varlen": packed}[kind]
        self.model.model.language_model.set_attn_implementation(name)
        if contender not in self._functions:
            mask = make_mask(kind, self.batch)
            function = PackedLoss(self.model, self.dtype, mask)
            if compiled:
                function = torch.compile(function, dynamic=False)
            self._functions[contender] = function
        return self._functions[contender]

    def do_gate(self, contender: str, steps: int) -> dict[str, list[float]]:
        """As in `NativeStep`."""
        loss = self._select(contender)
        self._reset()
        found = [self._step(loss) | {"grad_norm": self._norm()} for _ in range(steps)]
        return {name: [step[name] for step in found] for name in found[0]}

    def do_run(self, contender: str, steps: int) -> dict[str, Any]:
        """As in `NativeStep`."""
        loss = self._select(contender)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with Meter() as meter:
            seconds = [self._step(loss)["seconds"] for _ in range(steps)]
        cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else meter.resident
        return {"seconds": seconds, "cpu": meter.cpu, "peak": peak, "others": meter.others}

    def do_matmul(self, contender: str, dtype: str, size: int) -> float:
        """As in `NativeStep`."""
        del contender
        x = torch.randn((size, size), device=self.device).to(getattr(torch, dtype))
        took = []
        for _ in range(11):
            self._wait()
            began = time.perf_counter()
            x @ x
            self._wait()
            took.append(time.perf_counter() - began)
        return 2 * size**3 / min(took[1:])

    def _step(self, loss_of: Any) -> dict[str, float]:
        began = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss_of(self.batch)
        loss.backward()
        self.clipped_by = nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self._wait()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "loss": loss.item()}

    def _norm(self) -> float:
        """Of the last step's gradient before it was clipped.

        On a CPU PyTorch's own, in float32, is .2 % low for a table of 16,384 rows of 2,048.
        """
        scale = min(1.0, 1.0 / (self.clipped_by.item() + 1e-6))
        squares = (p.grad.double().square().sum() for p in self.trained if p.grad is not None)
        return (sum(squares) ** 0.5).item() / scale

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def prepare(batch: dict[str, np.ndarray], device: torch.device) -> dict[str, Any]:
    """Arrays of `make_rows` as tensors, with the places of everything in the flattened rows found beforehand."""
    T = batch["tokens"].shape[1]
    tensor = lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(device)
    flat = lambda rows, places: np.asarray(rows * T + places, np.int64)
    row, target = np.nonzero(batch["target_weights"])
    out = {
        "tokens": tensor(batch["tokens"].astype(np.int64)),
        "positions": tensor(batch["positions"].astype(np.int64)),
        "segments": tensor(batch["segment_ids"].astype(np.int64)),
        "text_places": tensor(flat(row, batch["target_positions"][row, target])),
        "text_ids": tensor(batch["target_ids"][row, target].astype(np.int64)),
    }
    types = batch["token_types"].reshape(-1)
    if (types == TOKEN_UND).any():
        # Pictures in use come first in their rows, and fill positions in their order.
        per_row = (batch["token_types"] == TOKEN_UND).sum(1)
        size = int((batch["token_types"] == TOKEN_UND).sum() // _count(batch, TOKEN_UND))
        images = [batch["und_images"][i, : n // size] for i, n in enumerate(per_row)]
        out["und_images"] = tensor(np.concatenate(images).transpose(0, 3, 1, 2))
        out["und_places"] = tensor(np.flatnonzero(types == TOKEN_UND))
    row, picture = np.nonzero(batch["gen_weights"])
    if len(row):
        name = "gen_codes" if "gen_codes" in batch else "gen_images"
        value = batch[name][row, picture]
        codes = name == "gen_codes"
        out[name] = tensor(value.astype(np.int64) if codes else value.transpose(0, 3, 1, 2))
        fed = np.flatnonzero(types == TOKEN_GEN)
        starts = flat(row, batch["gen_starts"][row, picture])
        out["gen_places"] = tensor(fed)
        out["code_places"] = tensor(
            (starts[:, None] + np.arange(len(fed) // len(row) + 1)).reshape(-1)
        )
    return out


def _count(batch: dict[str, np.ndarray], kind: int) -> int:
    """Sequences that have positions of this kind."""
    rows, _ = np.nonzero(batch["token_types"] == kind)
    ids = batch["segment_ids"][batch["token_types"] == kind]
    return len({*zip(rows.tolist(), ids.tolist(), strict=True)})


def lengths(segment_ids: Tensor) -> list[list[int]]:
    """Of the runs of equal ids in each row, padding included."""
    return [torch.unique_consecutive(row, return_counts=True)[1].tolist() for row in segment_ids]


def make_mask(kind: str, batch: dict[str, Any]) -> dict[str, Any]:
    """What the attention of this kind is told of the rows: arguments of the language model."""
    ids = batch["segments"]
    B, T = ids.shape
    if kind == "sdpa":
        causal = torch.ones((T, T), dtype=torch.bool, device=ids.device).tril()
        return {"attention_mask": ((ids[:, :, None] == ids[:, None, :]) & causal)[:, None]}
    if kind == "flex":
        from torch.nn.attention.flex_attention import create_block_mask

        def allowed(b, h, q, k):
            del h
            return (q >= k) & (ids[b, q] == ids[b, k])

        return {"attention_mask": create_block_mask(allowed, B, None, T, T, ids.device)}
    if ids.device.type == "cpu":
        return {"row_segments": lengths(ids)}
    sizes = [n for row in lengths(ids) for n in row]
    ends = torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32, device=ids.device)
    return {"cu_segments": ends, "longest": max(sizes)}


def segments(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """For transformers, on a CPU: [B, N, T, H] -> [B, T, N, H], a causal attention for each segment."""
    del attention_mask
    out = []
    for row, sizes in enumerate(kwargs["row_segments"]):
        parts = [x[row : row + 1].split(sizes, dim=2) for x in (query, key, value)]
        done = [
            F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
            for q, k, v in zip(*parts, strict=True)
        ]
        out.append(torch.cat(done, dim=2))
    return torch.cat(out).transpose(1, 2).contiguous(), None


def varlen(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """For transformers, on a GPU: the same by Flash Attention's kernel for sequences of various lengths."""
    from torch.nn.attention.varlen import varlen_attn

    del attention_mask
    B, _, T, _ = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    ends, longest = kwargs["cu_segments"], kwargs["longest"]
    out = varlen_attn(
        q,
        k,
        v,
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.unflatten(0, (B, T)), None


class PackedLoss(nn.Module):
    """Cross-entropy of packed rows, a mean over all targets of both heads."""

    def __init__(self, model: Any, dtype: torch.dtype, mask: dict[str, Any]):
        super().__init__()
        self.model, self.dtype, self.mask = model, dtype, mask

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """`batch` of `prepare` -> the loss."""
        device = batch["tokens"].device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            return self._loss(batch)

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        inner = self.model.model
        B, T = batch["tokens"].shape
        x = inner.language_model.embed_tokens(batch["tokens"]).to(self.dtype).flatten(0, 1)
        if "und_images" in batch:
            pixels = batch["und_images"].float() / 127.5 - 1
            features = inner.vision_model(pixels).last_hidden_state
            features = inner.aligner(features).flatten(0, 1).to(x.dtype)
            x = x.index_copy(0, batch["und_places"], features)
        codes = self._codes(batch)
        if codes is not None:
            fed = inner.generation_aligner(inner.generation_embeddings(codes[:, :-1]))
            x = x.index_copy(0, batch["gen_places"], fed.flatten(0, 1).to(x.dtype))
        hidden = inner.language_model(
            inputs_embeds=x.unflatten(0, (B, T)),
            position_ids=batch["positions"],
            use_cache=False,
            **self.mask,
        ).last_hidden_state.flatten(0, 1)
        count = len(batch["text_ids"])
        logits = self.model.lm_head(hidden[batch["text_places"]]).float()
        total = F.cross_entropy(logits, batch["text_ids"], reduction="sum")
        if codes is not None:
            logits = inner.generation_head(hidden[batch["code_places"]]).float()
            total = total + F.cross_entropy(logits, codes.flatten(), reduction="sum")
            count += codes.numel()
        return total / count

    def _codes(self, batch: dict[str, Any]) -> Tensor | None:
        """Codes of the pictures to draw [pictures, N]; the tokenizer runs in float32, as here."""
        if "gen_codes" in batch or "gen_images" not in batch:
            return batch.get("gen_codes")
        vq, pixels = self.model.model.vqmodel, batch["gen_images"].float() / 127.5 - 1
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            z = F.normalize(vq.quant_conv(vq.encoder(pixels)).flatten(2).transpose(1, 2), dim=-1)
            table = F.normalize(vq.quantize.embedding.weight, dim=-1)
            return (z @ table.T).argmax(-1)
