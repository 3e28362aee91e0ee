"""The tokenizer and the processor settings that lie beside PyTorch weights, read and written.

Files: `tokenizer.json`, `processor_config.json`, `preprocessor_config.json`, both formats. Sources:
`janus/models/{processing_vlm,image_processing_vlm}.py`, `transformers.models.janus`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.processing import Processor, ProcessorConfig, Tokenizer
from janus_jax.processing.chat import TEMPLATES, UNDERSTANDING_SYSTEM_PROMPT
from janus_jax.processing.tokenizer import (
    ASSISTANT,
    BOI,
    BOS,
    EOI,
    EOS,
    IMAGE,
    PAD,
    USER,
)
from janus_jax.weights.files import read_object

# What our image processing does; other numbers would silently give the model other pixels.
_PIXELS = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "min_size": 14,
    "rescale_factor": 1 / 255,
    "background_color": [127, 127, 127],
}


def read_processor(
    directory: Path, config: JanusConfig, tokenizer_file: Path | None = None
) -> tuple[ProcessorConfig, Tokenizer]:
    """The processor of a checkpoint directory.

    Args:
      directory: where the weights are.
      config: their architecture; its sizes win over those in the files, but must agree with them.
      tokenizer_file: used instead of the directory's `tokenizer.json`.

    Raises:
      UserError: there is no tokenizer, it lacks a token that Janus needs or has more ids than the model
        rows, a setting is impossible, or pictures would be prepared in a way that is not supported.
    """
    path = tokenizer_file or directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; copy the tokenizer.json of the release there, or pass "
            "--tokenizer FILE"
        )
    tokenizer = Tokenizer.from_file(path)
    settings = _read(directory / "processor_config.json")
    template = settings.get("sft_format") or _guess_template(tokenizer)
    if template not in TEMPLATES:
        raise UserError(
            f"{directory}/processor_config.json: unknown sft_format {template!r}, expected one of "
            f"{', '.join(TEMPLATES)}"
        )
    # `VLChatProcessor.__init__`: the one token that is added where a tokenizer lacks it.
    tokenizer = tokenizer.with_special_tokens([IMAGE])
    rows = config.decoder.vocab_size
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} ids, but the model's table only {rows} rows: it is the "
            "tokenizer of another model"
        )
    tokens = settings.get("num_image_tokens", config.siglip.num_patches)
    if tokens != config.siglip.num_patches:
        raise UserError(
            f"{directory}/processor_config.json: num_image_tokens is {tokens}, but the encoder makes "
            f"{config.siglip.num_patches}"
        )
    _check_pixels(directory / "preprocessor_config.json", config)
    processor = ProcessorConfig.from_model(
        config, template=template, system_prompt=UNDERSTANDING_SYSTEM_PROMPT
    )
    Processor(processor, tokenizer)  # raises if a token is missing
    return processor, tokenizer


def processor_files(
    config: JanusConfig, processor: ProcessorConfig, tokenizer: Tokenizer, table: str
) -> dict[str, str]:
    """File name -> contents, for a directory in the "official" or the "hf" format."""
    pixels: dict[str, Any] = {
        "image_size": config.siglip.image_size,
        "image_mean": _PIXELS["image_mean"],
        "image_std": _PIXELS["image_std"],
        "min_size": _PIXELS["min_size"],
        "rescale_factor": _PIXELS["rescale_factor"],
        "do_normalize": True,
    }
    if table == "official":
        pixels |= {
            "background_color": _PIXELS["background_color"],
            "image_processor_type": "VLMImageProcessor",
            "processor_class": "VLChatProcessor",
        }
        settings: dict[str, Any] = {
            "add_special_token": False,
            "ignore_id": -100,
            "image_tag": IMAGE,
            "mask_prompt": True,
            "num_image_tokens": config.siglip.num_patches,
            "processor_class": "VLChatProcessor",
            "sft_format": processor.template,
        }
        names = {"tokenizer_class": "LlamaTokenizerFast"}
    else:
        side = config.siglip.image_size
        pixels |= {
            "size": {"height": side, "width": side},
            "do_convert_rgb": True,
            "do_rescale": True,
            "do_resize": True,
            "do_pad": True,
            "resample": 3,
            "image_processor_type": "JanusImageProcessor",
            "processor_class": "JanusProcessor",
        }
        settings = {
            "num_image_tokens": config.siglip.num_patches,
            "processor_class": "JanusProcessor",
            "use_default_system_prompt": True,
        }
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "image_token": IMAGE}
        names |= {"boi_token": BOI, "eoi_token": EOI}
    names |= {
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": config.decoder.max_position,
        "add_bos_token": True,
        "add_eos_token": False,
    }
    files = {
        "preprocessor_config.json": pixels,
        "processor_config.json": settings,
        "tokenizer_config.json": names,
    }
    texts = {name: json.dumps(value, indent=2, ensure_ascii=False) for name, value in files.items()}
    return texts | {"tokenizer.json": tokenizer.to_json()}


def _guess_template(tokenizer: Tokenizer) -> str:
    """Janus-Pro has tokens for the roles, Janus-1.3B writes them out."""
    has_roles = all(tokenizer.token_id(role) is not None for role in (USER, ASSISTANT))
    return "deepseek" if has_roles else "deepseek_old"


def _check_pixels(path: Path, config: JanusConfig) -> None:
    values = _read(path)
    size = values.get("image_size", config.siglip.image_size)
    if size != config.siglip.image_size:
        raise UserError(
            f"{path}: image_size is {size}, but the encoder takes {config.siglip.image_size}"
        )
    for key, want in _PIXELS.items():
        value = values.get(key, want)
        if not _equal(value, want):
            raise UserError(f"{path}: {key} = {value!r} is not supported, it must be {want!r}")
    if values and values.get("do_normalize") is False:
        # Janus-1.3B was published like this and corrected on 14 November 2024.
        print(
            f"warning: {path} says do_normalize false, as an early copy of Janus-1.3B does; pictures are "
            "normalised all the same",
            file=sys.stderr,
        )


def _equal(value: Any, want: Any) -> bool:
    if isinstance(want, list):
        value = list(value) if isinstance(value, list | tuple) else [value] * len(want)
        return len(value) == len(want) and all(map(_equal, value, want))
    return isinstance(value, int | float) and abs(value - want) < 1e-6


def _read(path: Path) -> Mapping[str, Any]:
    """A JSON object; {} if the file does not exist."""
    return read_object(path) if path.is_file() else {}
