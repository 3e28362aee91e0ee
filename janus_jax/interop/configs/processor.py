"""The tokenizer and the processor settings beside PyTorch weights, read and written.

Files: `tokenizer.json`, `processor_config.json`, `preprocessor_config.json` (from transformers 5 on the
section `image_processor` of `processor_config.json`) and transformers' `generation_config.json`. Sources:
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
from janus_jax.files import read_json
from janus_jax.processing import Processor, ProcessorConfig, Tokenizer
from janus_jax.processing.chat import TEMPLATES, UNDERSTANDING_SYSTEM_PROMPT
from janus_jax.processing.processor import check_setting
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
from janus_jax.untrusted import shown

# What the image processing here does; other numbers would silently give the model other pixels.
_PIXELS = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "min_size": 14,
    "rescale_factor": 1 / 255,
    "background_color": [127, 127, 127],
    "resample": 3,  # PIL's number of bicubic
}
# Where a file is silent, both image processors take CLIP's.
_CLIP = {
    "image_mean": "[0.48145466, 0.4578275, 0.40821073]",
    "image_std": "[0.26862954, 0.26130258, 0.27577711]",
}
_IMAGE_PROCESSORS = (
    "VLMImageProcessor",
    "JanusImageProcessor",
    "JanusImageProcessorFast",
    "JanusImageProcessorPil",
)
_ALWAYS_DONE = ("do_resize", "do_rescale", "do_pad")


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
    of_transformers = _read(directory / "config.json").get("model_type") == "janus"
    template = settings.get("sft_format") or _guess_template(tokenizer)
    if not isinstance(template, str) or template not in TEMPLATES:
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
    if not _is_number(tokens) or tokens != config.siglip.num_patches:
        raise UserError(
            f"{directory}/processor_config.json: num_image_tokens must be the number "
            f"{config.siglip.num_patches}, as many as the encoder makes, not {shown(tokens)}"
        )
    _check_pixels(directory, settings, config.siglip.image_size, of_transformers)
    system_prompt = _system_prompt(settings)
    check_setting("system_prompt", system_prompt, f"{directory}/processor_config.json:")
    processor = ProcessorConfig.from_model(
        config,
        template=template,
        system_prompt=system_prompt,
        **_drawing(directory, settings, of_transformers),
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
        # The official code has these as constants; only this package reads them.
        defaults = ProcessorConfig()
        for key in ("cfg_weight", "temperature"):
            if getattr(processor, key) != getattr(defaults, key):
                settings[key] = getattr(processor, key)
    else:
        side = config.siglip.image_size
        pixels |= {
            "size": {"height": side, "width": side},
            "do_convert_rgb": True,
            "do_rescale": True,
            "do_resize": True,
            "do_pad": True,
            "resample": _PIXELS["resample"],
            "image_processor_type": "JanusImageProcessor",
            "processor_class": "JanusProcessor",
        }
        settings = {
            "num_image_tokens": config.siglip.num_patches,
            "processor_class": "JanusProcessor",
            "use_default_system_prompt": processor.system_prompt == UNDERSTANDING_SYSTEM_PROMPT,
        }
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "image_token": IMAGE}
        names |= {"boi_token": BOI, "eoi_token": EOI}
        # transformers knows neither; only this package reads them.
        if processor.template != _guess_template(tokenizer):
            settings["sft_format"] = processor.template
    if processor.system_prompt != _system_prompt(settings):
        settings["system_prompt"] = processor.system_prompt
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
    if table == "hf":
        files["generation_config.json"] = _generation(processor, tokenizer)
    texts = {name: json.dumps(value, indent=2, ensure_ascii=False) for name, value in files.items()}
    return texts | {"tokenizer.json": tokenizer.to_json()}


def _generation(processor: ProcessorConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """transformers' `generation_config.json`; without these it draws with a top-k of 50."""
    values = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "guidance_scale": processor.cfg_weight,
        "temperature": processor.temperature,
        "generation_kwargs": {"boi_token_id": tokenizer.boi_id},
    }
    # transformers divides by the temperature if it samples: 0, greedy here, is not to do so.
    return values if processor.temperature else values | {"do_sample": False}


def _guess_template(tokenizer: Tokenizer) -> str:
    """Janus-Pro has tokens for the roles, Janus-1.3B writes them out."""
    has_roles = all(tokenizer.token_id(role) is not None for role in (USER, ASSISTANT))
    return "deepseek" if has_roles else "deepseek_old"


def _system_prompt(settings: Mapping[str, Any]) -> str:
    """What precedes a question; only an explicit false of transformers' flag switches it off."""
    prompt = settings.get("system_prompt")
    if isinstance(prompt, str):
        return prompt
    return "" if settings.get("use_default_system_prompt") is False else UNDERSTANDING_SYSTEM_PROMPT


def _drawing(
    directory: Path, settings: Mapping[str, Any], of_transformers: bool
) -> dict[str, float]:
    """`cfg_weight` and `temperature`, where the files say something about them."""
    # A generation_config.json beside official weights is the language model's: the official code draws
    # with constants.
    path, values, guidance = directory / "processor_config.json", settings, "cfg_weight"
    if of_transformers:
        path = directory / "generation_config.json"
        values, guidance = _read(path), "guidance_scale"
        nothing = {"top_k": (None, 0), "top_p": (None, 1)}
        asked = [f"{k} {values[k]!r}" for k, none in nothing.items() if values.get(k) not in none]
        # What draws without chance there is greedy here at temperature 0 alone.
        if values.get("do_sample") is False and values.get("temperature") != 0:
            asked.append("do_sample False (greedy: temperature 0 here)")
        if asked:
            print(
                f"warning: {path} says {', '.join(asked)}, which is not taken over; give it when drawing",
                file=sys.stderr,
            )
    names = {"cfg_weight": guidance, "temperature": "temperature"}
    found = {}
    for field, key in names.items():
        value = values.get(key)
        if value is None:
            continue
        check_setting(field, value, f"{path}:", key)
        found[field] = float(value)
    return found


def _check_pixels(
    directory: Path, settings: Mapping[str, Any], side: int, of_transformers: bool
) -> None:
    """Refuses by name what would give the encoder other pixels than it was trained with."""
    path = directory / "preprocessor_config.json"
    _check_section(f"{path}:", _read(path), side, of_transformers)
    section, where = settings.get("image_processor"), f"{directory}/processor_config.json:"
    if not isinstance(section, Mapping | None):
        raise UserError(f"{where} image_processor must be an object, not {section!r}")
    _check_section(f"{where} image_processor:", section or {}, side, True)


def _check_section(where: str, values: Mapping[str, Any], side: int, of_transformers: bool) -> None:
    if not values:
        return
    kind = values.get("image_processor_type", _IMAGE_PROCESSORS[0])
    if kind not in _IMAGE_PROCESSORS:
        raise UserError(
            f"{where} image_processor_type {kind!r} is not supported, it must be one of "
            f"{', '.join(_IMAGE_PROCESSORS)}"
        )
    sizes = {"image_size": values.get("image_size"), "size": values.get("size")}
    for key, size in sizes.items():
        if size is not None and not _is_square(size, side):
            raise UserError(f"{where} {key} is {size!r}, but the encoder takes {side}")
    for key, want in _PIXELS.items():
        value = values.get(key)
        if value is None and key in _CLIP:
            raise UserError(
                f"{where} {key} is missing, which means {_CLIP[key]}; it must be {want}"
            )
        if isinstance(value, str) and key == "resample" and value.lower() == "bicubic":
            continue
        if value is not None and not _equal(value, want):
            raise UserError(f"{where} {key} = {value!r} is not supported, it must be {want!r}")
    for key in _ALWAYS_DONE:
        if values.get(key) not in (None, True):
            raise UserError(f"{where} {key} = {values[key]!r} is not supported, it must be true")
    for key, value in values.items():
        known = (*_ALWAYS_DONE, "do_normalize", "do_convert_rgb")
        if key.startswith("do_") and key not in known and value:
            raise UserError(f"{where} {key} = {value!r} is not supported")
    if values.get("do_normalize") not in (None, True):
        if of_transformers:
            raise UserError(
                f"{where} do_normalize = {values['do_normalize']!r} is not supported, it must be true"
            )
        # Janus-1.3B was published like this and corrected on 14 November 2024.
        print(
            f"warning: {where} do_normalize is false, as in an early copy of Janus-1.3B; pictures are "
            "normalised all the same",
            file=sys.stderr,
        )


def _is_square(size: Any, side: int) -> bool:
    """Whether a `size` of transformers, in any of its spellings, is a square of this side."""
    if isinstance(size, Mapping):
        given = {key: value for key, value in size.items() if value is not None}
        return given == {"height": side, "width": side}
    sides = size if isinstance(size, list) else [size]
    return len(sides) in (1, 2) and all(_is_number(s) and s == side for s in sides)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(value: Any, want: Any) -> bool:
    if isinstance(want, list):
        value = value if isinstance(value, list) else [value] * len(want)
        return len(value) == len(want) and all(map(_equal, value, want))
    # Not the difference of the two: an integer of JSON can be too large for a float.
    return _is_number(value) and want - 1e-6 < value < want + 1e-6


def _read(path: Path) -> Mapping[str, Any]:
    """A JSON object; {} if the file does not exist."""
    return read_json(path, dict) if path.is_file() else {}
