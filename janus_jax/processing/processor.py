"""Prompts, questions and pictures -> the token ids that one Janus checkpoint expects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from janus_jax.errors import UserError, nearest
from janus_jax.processing import chat
from janus_jax.processing.tokenizer import Tokenizer, half_character
from janus_jax.untrusted import shown

if TYPE_CHECKING:
    from janus_jax.config import JanusConfig

LARGEST = 10**6  # guidance weights and temperatures are below: a file with more is damaged


@dataclass(frozen=True)
class ProcessorConfig:
    """What a checkpoint directory records about its inputs and outputs.

    Attributes:
      template: chat template, "deepseek" (Janus-Pro) or "deepseek_old" (Janus-1.3B).
      system_prompt: system prompt of understanding; generation never has one.
      und_image_size: side in pixels of the understanding input.
      gen_image_size: side in pixels of generated pictures.
      num_image_tokens: image slots of one understanding input.
      num_codes: image codes of one generated picture.
      cfg_weight: default guidance weight (5 in the official script).
      temperature: default temperature of drawing (1 in the official script).
    """

    template: str = "deepseek"
    system_prompt: str = ""
    und_image_size: int = 384
    gen_image_size: int = 384
    num_image_tokens: int = 576
    num_codes: int = 576
    cfg_weight: float = 5.0
    temperature: float = 1.0

    @classmethod
    def from_model(cls, config: JanusConfig, **fields: Any) -> ProcessorConfig:
        """Sizes from the architecture; `fields` sets the rest. Raises UserError like `from_dict`, so that what
        is written can be read again."""
        sizes = dict(
            und_image_size=config.siglip.image_size,
            gen_image_size=config.vq.image_size,
            num_image_tokens=config.siglip.num_patches,
            num_codes=config.vq.num_codes,
        )
        return cls.from_dict({**sizes, **fields})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ProcessorConfig:
        """Inverse of `to_dict`. Raises UserError on a field it does not know or of the wrong type."""
        known = {f.name: f.default for f in dataclasses.fields(cls)}
        for name, value in fields.items():
            if name not in known:
                raise UserError(
                    f"unknown field {shown(name)} in the processor config.{nearest(name[:100], known)}"
                )
            check_setting(name, value, "processor config:")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return dataclasses.asdict(self)


def check_setting(field: str, value: Any, where: str, key: str = "") -> None:
    """Whether a field of `ProcessorConfig` can have a value, wherever it was found.

    Args:
      field: the field.
      value: its value, as JSON or a config has it.
      where: what the message starts with: the file, or "processor config:".
      key: what the field is called there, if not as here.

    Raises:
      UserError: of the wrong type, out of range, or text with half a character in it.
    """
    kind = type(getattr(ProcessorConfig, field))
    if kind is str:
        good, want = isinstance(value, str), "text"
        if good and (half := half_character(value)):
            raise UserError(
                f"{where} {key or field} has {half}, which cannot be saved: leave it out"
            )
    elif kind is int:
        good = type(value) is int and 0 < value < 2**31
        want = f"an integer from 1 to {2**31 - 1}"
    else:
        good = type(value) in (int, float) and 0 <= value < LARGEST
        want = f"a number of at least 0 and below {LARGEST}"
    if not good:
        raise UserError(f"{where} {key or field} must be {want}, not {shown(value)}")


class Processor:
    """Token layouts of one checkpoint. Raises UserError at once if a special token is missing.

    Texts may say anything: what looks like a control token of the model is encoded as the letters it is made
    of (`Tokenizer.encode_pieces`). Only an `<image_placeholder>` in a question about pictures is one.
    """

    def __init__(self, config: ProcessorConfig, tokenizer: Tokenizer):
        self.config = config
        self.tokenizer = tokenizer
        self.template = chat.get_template(config.template)
        for name in ("bos_id", "eos_id", "pad_id", "boi_id", "eoi_id", "image_id"):
            getattr(tokenizer, name)

    def generation_ids(self, prompt: str) -> list[int]:
        """[BOS, chat prompt.., BOI]: the hidden state at BOI predicts image code 0.

        Raises:
          UserError: the prompt is empty or not text.
        """
        _check_text("prompt", prompt, ": describe the picture to draw")
        return self._encode(chat.generation_pieces(self.template, prompt))

    def unconditional_ids(self, ids: Sequence[int], pad: int | None = None) -> list[int]:
        """`unconditional_ids` of a prompt; `pad` defaults to the pad id."""
        return unconditional_ids(ids, self.tokenizer.pad_id if pad is None else pad)

    def understanding_ids(
        self, question: str, num_images: int = 1, system: str | None = None
    ) -> list[int]:
        """[BOS, system.., BOI, image slots, EOI, question.., `<|Assistant|>:`].

        The slots of image i hold `image_id`; their embeddings are replaced by image features. `system`
        stands for the checkpoint's system prompt, where it is given.

        Raises:
          UserError: the question is empty or not text, or has the wrong number of `<image_placeholder>`.
        """
        _check_text("question", question)
        pieces = chat.understanding_pieces(
            self.template, question, self._system(system), num_images
        )
        return self.expand_image_slots(self._encode(pieces))

    def next_question_ids(self, question: str, num_images: int = 0) -> list[int]:
        """[question.., `<|Assistant|>:`]: a later turn, after the EOS of the answer before it.

        Raises:
          UserError: the question is empty or not text, or has the wrong number of `<image_placeholder>`.
        """
        _check_text("question", question)
        pieces = chat.understanding_pieces(self.template, question, num_images=num_images)
        return self.expand_image_slots(self.tokenizer.encode_pieces(pieces))

    def answer_ids(self, answer: str) -> list[int]:
        """[answer.., EOS], as they follow `<|Assistant|>:` in a rendered conversation.

        Raises:
          UserError: the answer is empty or not text.
        """
        _check_text("answer", answer)
        return [*self.tokenizer.encode_text(f" {answer.strip()}"), self.tokenizer.eos_id]

    def text_ids(self, message: str, picture: str = "", system: str | None = None) -> list[int]:
        """[BOS, system.., message.., `<|Assistant|>:`]: a question without a picture.

        Args:
          message: the question.
          picture: a picture in words, if any: [.., BOI, picture.., EOI, message.., ..].
          system: instead of the checkpoint's system prompt.

        Raises:
          UserError: the message is empty or not text, or has an `<image_placeholder>`.
        """
        _check_text("message", message)
        return self._encode(chat.text_pieces(self.template, message, self._system(system), picture))

    def expand_image_slots(self, ids: Sequence[int]) -> list[int]:
        """Replaces each image id by BOI + num_image_tokens image ids + EOI."""
        tok = self.tokenizer
        placeholders = [tok.boi_id, *[tok.image_id] * self.config.num_image_tokens, tok.eoi_id]
        return [out for i in ids for out in (placeholders if i == tok.image_id else (i,))]

    def _system(self, system: str | None) -> str:
        return self.config.system_prompt if system is None else system

    def _encode(self, pieces: Sequence[str]) -> list[int]:
        return [self.tokenizer.bos_id, *self.tokenizer.encode_pieces(pieces)]


def unconditional_ids(ids: Sequence[int], pad: int) -> list[int]:
    """[BOS, pad.., BOI] of the length of a prompt. The pads are attended to (official
    `generation_inference.py`: `tokens[i, 1:-1] = pad_id`)."""
    return [ids[0], *[pad] * (len(ids) - 2), ids[-1]]


def _check_text(name: str, text: str, hint: str = "") -> None:
    """Raises UserError if `text` is not text or empty; what was given is not repeated."""
    if not isinstance(text, str):
        raise UserError(f"the {name} must be text (a string), not {type(text).__name__}")
    if not text.strip():
        raise UserError(f"the {name} is empty{hint}")
