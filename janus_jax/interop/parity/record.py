"""Lets PyTorch compute what `parity` compares: run it where PyTorch is, check it where JAX is.

The official `janus` package computes official checkpoints where it is installed, transformers all others.
Only their network is used, not their generation: prompts, guidance and greedy choice are the loop of
deepseek-ai/Janus `generation_inference.py`, and the tokenizer normalises as `janus/models/vq_model.py` does
(that of transformers forgets to when it encodes).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from janus_jax.errors import UserError, one_line
from janus_jax.files import atomic_write
from janus_jax.interop.configs.hf import config_to_hf
from janus_jax.interop.configs.official import SIGLIP_MODELS, VQ_MODELS
from janus_jax.interop.conversion.convert import to_torch
from janus_jax.interop.conversion.names import HF
from janus_jax.interop.conversion.source import Source
from janus_jax.pixels import to_uint8

CFG_WEIGHT, PAD_ID = 5.0, 3
_PROMPT, _SHORT, _ANSWER = 9, 5, 12


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The network's parts under common names."""

    by: str  # whose network
    features: Callable  # pixels -> SigLIP features
    align: Callable  # features -> embeddings
    embed: Callable  # ids -> embeddings
    decode: Any  # the Llama model without heads
    text_head: Callable
    image_head: Callable
    embed_codes: Callable  # codes -> embeddings
    vq: Any  # encoder, quant_conv, quantize, post_quant_conv, decoder


def write_recording(source: Source, path: Path, seed: int = 0) -> str:
    """Writes an `expected.npz` for random inputs, computed by PyTorch in float32.

    Args:
      source: the model.
      path: the new file.
      seed: of the inputs.

    Returns:
      Whose network computed it, e.g. "transformers 5.24.0".

    Raises:
      UserError: neither package is installed, or the one that is cannot build the model.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError("--record needs torch, and transformers or the official janus") from error
    with torch.no_grad():
        parts = _load(torch, source)
        arrays = _record(torch, parts, source, np.random.default_rng(seed))

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # of a path without .npz numpy would make another
            np.savez_compressed(file, **arrays)

    atomic_write(path, save)
    return parts.by


def _load(torch: Any, source: Source) -> _Parts:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if source.format == "official" and _official_is_installed():
        return _load_official(torch, source, device)
    try:
        from transformers import JanusConfig, JanusForConditionalGeneration, __version__
    except ImportError as error:
        raise UserError("--record needs transformers, or the official janus package") from error
    config = JanusConfig.from_dict(config_to_hf(source.config, 0, "float32"))
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    model = model.to_empty(device="cpu")
    state = {
        name: torch.from_numpy(np.ascontiguousarray(value))
        for p, array in source.arrays.items()
        for name, value in to_torch(p, array.load().astype(np.float32), HF).items()
    }
    source.check_finite()
    # Buffers are not in any checkpoint: they are taken from a model that was not made on "meta".
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if missing or unexpected:
        raise UserError(f"transformers wants other tensors: {[*missing, *unexpected][:8]}")
    _restore_buffers(torch, model, config)
    model = model.to(device).eval()
    inner = model.model
    return _Parts(
        f"transformers {__version__}",
        lambda x: inner.vision_model(x).last_hidden_state,
        inner.aligner,
        inner.get_input_embeddings(),
        inner.language_model,
        model.lm_head,
        inner.generation_head,
        model.prepare_embeddings_for_image_generation,
        inner.vqmodel,
    )


def _official_is_installed() -> bool:
    """Whether `janus` is DeepSeek's; on PyPI the name belongs to a queue."""
    spec = importlib.util.find_spec("janus")
    places = spec.submodule_search_locations if spec else None
    return any((Path(place) / "models" / "vq_model.py").is_file() for place in places or ())


def _load_official(torch: Any, source: Source, device: str) -> _Parts:
    """The official network, its weights read by transformers: no code of this package lies between."""
    try:
        from janus.models import MultiModalityCausalLM

        config = MultiModalityCausalLM.config_class.from_pretrained(source.directory)
        _teach_geometry(config, source)
        model = MultiModalityCausalLM.from_pretrained(source.directory, config=config)
    except Exception as error:  # older than what it stands on, it breaks in many ways
        try:
            found = f"transformers {importlib.metadata.version('transformers')}"
        except importlib.metadata.PackageNotFoundError:
            found = "no transformers"
        raise UserError(
            f"the official janus package does not work with {found} ({type(error).__name__}: "
            f"{one_line(error)[:200]}); docs/parity.md names versions that do"
        ) from error
    model = model.to(device, torch.float32).eval()
    llama = model.language_model
    return _Parts(
        "the official janus package",
        model.vision_model,
        model.aligner,
        llama.get_input_embeddings(),
        llama.model,
        llama.lm_head,
        model.gen_head,
        model.prepare_gen_img_embeds,
        model.gen_vision_model,
    )


def _teach_geometry(config: Any, source: Source) -> None:
    """The official code knows geometries by name alone; enters those that `config.json` spells out."""
    from janus.models import siglip_vit, vq_model

    siglip, vq = source.config.siglip, source.config.vq
    if siglip not in SIGLIP_MODELS.values():
        name = "siglip_spelled_out"  # the tower must begin with "siglip", the tokenizer with "VQ"
        fields = ("image_size", "patch_size", "width", "layers", "heads", "mlp_ratio")
        siglip_vit.SigLIP_MODEL_CONFIG[name] = {f: getattr(siglip, f) for f in fields}
        config.vision_config.params |= {"model_name": name, "select_layer": -1}
    if vq not in VQ_MODELS.values():
        shape = {f: getattr(vq, f) for f in ("ch", "ch_mult", "num_res_blocks", "z_channels")}

        def build():
            sizes = (vq.codebook_size, vq.codebook_dim)
            model = vq_model.VQModel(vq_model.ModelArgs(*sizes, z_channels=vq.z_channels))
            model.encoder, model.decoder = vq_model.Encoder(**shape), vq_model.Decoder(**shape)
            return model

        config.gen_vision_config.cls = "VQ-spelled-out"
        vq_model.VQ_models[config.gen_vision_config.cls] = build


def _restore_buffers(torch: Any, model: Any, config: Any) -> None:
    """Computes anew what is no parameter: position ids and rotary frequencies."""
    vision = model.model.vision_model.embeddings
    if hasattr(vision, "position_ids"):
        vision.position_ids = torch.arange(vision.position_ids.shape[-1]).expand(1, -1)
    rotary = model.model.language_model.rotary_emb
    fresh = type(rotary)(config.text_config)
    for name, buffer in fresh.named_buffers():
        setattr(rotary, name, buffer)


def _record(torch: Any, parts: _Parts, source: Source, rng: np.random.Generator) -> dict[str, Any]:
    config, device = source.config, parts.vq.quantize.embedding.weight.device
    tensor = lambda x: torch.from_numpy(np.asarray(x)).to(device)
    numpy = lambda x: x.detach().cpu().numpy()
    P, side, codes_side = config.siglip.num_patches, config.siglip.image_size, config.vq.image_size
    random_ids = lambda *shape: rng.integers(4, min(config.decoder.vocab_size, 50_000), shape)

    out: dict[str, Any] = {}
    out["pixel_values"] = rng.uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
    features = parts.features(tensor(out["pixel_values"]))
    images = parts.align(features)
    out |= {"siglip_features": numpy(features), "und_embeds": numpy(images)}

    ids = random_ids(2, P + _PROMPT)
    image_mask = np.zeros(ids.shape, bool)
    image_mask[:, 4 : 4 + P] = True
    attended = np.ones(ids.shape, np.int64)
    attended[1, 0] = 0
    out |= {"und_input_ids": ids, "und_image_mask": image_mask, "und_attention_mask": attended}
    embeds = parts.embed(tensor(ids))
    embeds[tensor(image_mask)] = images.reshape(-1, images.shape[-1])
    choose = lambda hidden: (parts.text_head(hidden),) * 2
    step = lambda logits: (logits.argmax(-1), parts.embed(logits.argmax(-1))[:, None])
    tokens, hidden, _, _ = _greedy(
        torch, parts, embeds, tensor(attended), _ANSWER, choose, step, "answer"
    )
    out |= {"und_logits": numpy(parts.text_head(hidden)), "und_greedy": numpy(tokens)}

    out["vq_image"] = rng.uniform(-1, 1, (2, 3, codes_side, codes_side)).astype(np.float32)
    z = parts.vq.quant_conv(parts.vq.encoder(tensor(out["vq_image"])))
    unit = lambda x, dim: torch.nn.functional.normalize(x, dim=dim)
    book = unit(parts.vq.quantize.embedding.weight, -1)
    flat = unit(z, 1).permute(0, 2, 3, 1).reshape(len(z), -1, z.shape[1])
    codes = (flat @ book.T).argmax(-1)  # the nearest of unit vectors

    def lookup(codes):
        shape = (len(codes), config.vq.grid, config.vq.grid, -1)
        return book[codes].reshape(shape).permute(0, 3, 1, 2)

    pixels = lambda codes: parts.vq.decoder(parts.vq.post_quant_conv(lookup(codes)))
    out |= {"vq_codes": numpy(codes), "vq_quant": numpy(lookup(codes))}
    out["vq_decoded"] = numpy(pixels(codes))

    out |= {"gen_pad_id": np.int64(PAD_ID), "gen_cfg_weight": np.float32(CFG_WEIGHT)}
    for key, codes_key, length in (
        ("short_prompt_ids", "short_codes_greedy", _SHORT),
        ("gen_prompt_ids", "gen_codes_greedy", _PROMPT),
    ):
        prompts = random_ids(2, length)
        rows = np.concatenate([prompts, np.full_like(prompts, PAD_ID)])
        rows[2:, [0, -1]] = prompts[:, [0, -1]]

        def guided(hidden):
            conditional, unconditional = parts.image_head(hidden).chunk(2)
            logits = unconditional + CFG_WEIGHT * (conditional - unconditional)
            return logits, logits

        def both(logits):
            chosen = logits.argmax(-1)
            return chosen, parts.embed_codes(chosen.repeat(2))[:, None]

        everywhere = tensor(np.ones(rows.shape, np.int64))
        start = parts.embed(tensor(rows))
        drawn, _, first, last = _greedy(
            torch, parts, start, everywhere, config.vq.num_codes, guided, both, "picture"
        )
        out |= {key: prompts, codes_key: numpy(drawn)}
    out |= {"gen_cfg_logits_first": numpy(first), "gen_cfg_logits_last": numpy(last)}
    shown = numpy(pixels(drawn)).transpose(0, 2, 3, 1)
    out["gen_pixels_uint8"] = to_uint8(shown)
    return out


def _greedy(torch, parts, embeds, attended, steps, choose, step, what):
    """(choices [B, steps], hidden states of the prefill, first logits, last logits)."""
    # Newer transformers call the cache by another name.
    accepted = inspect.signature(parts.decode.forward).parameters
    cache = "cache" if "cache" in accepted else "past_key_values"
    positions = (attended.cumsum(1) - 1).clamp(min=0)
    out = parts.decode(
        inputs_embeds=embeds, attention_mask=attended, position_ids=positions, use_cache=True
    )
    hidden, state = out.last_hidden_state, out.last_hidden_state[:, -1]
    chosen, first, logits = [], None, None
    for i in tqdm(range(steps), desc=what, leave=False):
        logits, kept = choose(state)
        first = kept if first is None else first
        tokens, embeds = step(logits)
        chosen.append(tokens)
        if i + 1 < steps:
            attended = torch.cat([attended, torch.ones_like(attended[:, :1])], 1)
            out = parts.decode(
                inputs_embeds=embeds,
                attention_mask=attended,
                position_ids=positions[:, -1:] + 1 + i,
                use_cache=True,
                **{cache: getattr(out, cache)},
            )
            state = out.last_hidden_state[:, -1]
    return torch.stack(chosen, 1), hidden, first, logits
