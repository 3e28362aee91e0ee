"""Conversations -> the prompt in pieces, whose joined string is what the official processor renders.

Source: deepseek-ai/Janus `janus/utils/conversation.py` (templates "deepseek" of Janus-Pro and
"deepseek_old" of Janus-1.3B) and `janus/models/processing_vlm.py`. Unlike there, the role text
always comes from the template: passing "User" to Janus-Pro is a prompt it never saw in training. A piece is
a `Control`, which becomes one token, or text, which becomes no control token whatever it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus_jax.errors import UserError, nearest
from janus_jax.processing.tokenizer import ASSISTANT, BOI, EOI, EOS, IMAGE, USER, Control
from janus_jax.untrusted import shown

UNDERSTANDING_SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)


@dataclass(frozen=True)
class ChatTemplate:
    """Role strings and separators: `{user}: {text}{sep}` and `{assistant}: {text}{sep2}`."""

    user: str
    assistant: str
    sep: str = "\n\n"
    sep2: str = Control(EOS)


TEMPLATES = {
    "deepseek": ChatTemplate(user=Control(USER), assistant=Control(ASSISTANT)),
    "deepseek_old": ChatTemplate(user="User", assistant="Assistant"),
}


def get_template(name: str) -> ChatTemplate:
    """The template called `name`; UserError if there is none."""
    if name not in TEMPLATES:
        raise UserError(
            f"unknown chat template {shown(name)}, expected one of {', '.join(TEMPLATES)}."
            + nearest(name[:100], TEMPLATES)
        )
    return TEMPLATES[name]


def render(template: ChatTemplate, turns: Sequence[str], system_prompt: str = "") -> str:
    """The joined string of `render_pieces`, for turns that are text."""
    return "".join(render_pieces(template, [[text] for text in turns], system_prompt))


def render_pieces(
    template: ChatTemplate, turns: Sequence[Sequence[str]], system_prompt: str = ""
) -> list[str]:
    """Renders turns, each in pieces, that alternate user, assistant, user, ...

    An empty last assistant turn renders as `{assistant}:` without a space, which is where the model
    goes on. Contents, and the whole prompt, are stripped.
    """
    prompt = [system_prompt, template.sep] if system_prompt else []
    for i, turn in enumerate(turns):
        role, sep = (template.assistant, template.sep2) if i % 2 else (template.user, template.sep)
        turn = _strip(turn)
        prompt += [role, ": ", *turn, sep] if turn else [role, ":"]
    return _strip(prompt)


def generation_pieces(template: ChatTemplate, prompt: str) -> list[str]:
    """`<|User|>: {prompt}\\n\\n<|Assistant|>:<begin_of_image>`; image codes follow."""
    return [*render_pieces(template, [[prompt], []]), Control(BOI)]


def generation_prompt(template: ChatTemplate, prompt: str) -> str:
    """The joined string of `generation_pieces`."""
    return "".join(generation_pieces(template, prompt))


def understanding_pieces(
    template: ChatTemplate, question: str, system_prompt: str = "", num_images: int = 1
) -> list[str]:
    """A question about images, up to and including `<|Assistant|>:`.

    A question without `<image_placeholder>` gets one a line in front of it for each image.
    Raises UserError if it has placeholders, but not one for each image.
    """
    first, *rest = question.split(IMAGE)
    if not rest:
        pieces = [Control(IMAGE), "\n"] * num_images + [question]
    elif len(rest) == num_images:
        pieces = [first, *(piece for text in rest for piece in (Control(IMAGE), text))]
    else:
        raise UserError(f"the question has {len(rest)} {IMAGE}, but there are {num_images} images")
    return render_pieces(template, [pieces, []], system_prompt)


def understanding_prompt(
    template: ChatTemplate, question: str, system_prompt: str = "", num_images: int = 1
) -> str:
    """The joined string of `understanding_pieces`."""
    return "".join(understanding_pieces(template, question, system_prompt, num_images))


def text_pieces(
    template: ChatTemplate, message: str, system_prompt: str = "", picture: str = ""
) -> list[str]:
    """A message without a picture, up to and including `<|Assistant|>:`.

    `picture` says one in words: they stand before the message, where a picture's slots would.
    Raises UserError if there is an `<image_placeholder>`, for no picture of its own belongs there.
    """
    if found := message.count(IMAGE):
        raise UserError(f"the message has {found} {IMAGE}, but there are 0 images")
    words = [Control(BOI), picture, Control(EOI), "\n"] if picture else []
    return render_pieces(template, [[*words, message], []], system_prompt)


def _strip(pieces: Sequence[str]) -> list[str]:
    """Pieces whose joined string is stripped; empty ones are left out."""
    pieces = list(pieces)
    while pieces and not isinstance(pieces[0], Control):
        pieces[0] = pieces[0].lstrip()
        if pieces[0]:
            break
        pieces.pop(0)
    while pieces and not isinstance(pieces[-1], Control):
        pieces[-1] = pieces[-1].rstrip()
        if pieces[-1]:
            break
        pieces.pop()
    return pieces
