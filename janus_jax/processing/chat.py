"""Conversations -> the prompt string, as the official processor renders it.

Source: deepseek-ai/Janus `janus/utils/conversation.py` (templates "deepseek" of Janus-Pro and
"deepseek_old" of Janus-1.3B) and `janus/models/processing_vlm.py`. Unlike there, the role text
always comes from the template: passing "User" to Janus-Pro is a prompt it never saw in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus_jax.errors import UserError, nearest
from janus_jax.processing.tokenizer import ASSISTANT, BOI, EOS, IMAGE, USER
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
    sep2: str = EOS


TEMPLATES = {
    "deepseek": ChatTemplate(user=USER, assistant=ASSISTANT),
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
    """Renders turns that alternate user, assistant, user, ...

    An empty last assistant turn renders as `{assistant}:` without a space, which is where the model
    goes on. Contents, and the whole prompt, are stripped.
    """
    prompt = system_prompt + template.sep if system_prompt else ""
    for i, text in enumerate(turns):
        role, sep = (template.assistant, template.sep2) if i % 2 else (template.user, template.sep)
        text = text.strip()
        prompt += f"{role}: {text}{sep}" if text else f"{role}:"
    return prompt.strip()


def generation_prompt(template: ChatTemplate, prompt: str) -> str:
    """`<|User|>: {prompt}\\n\\n<|Assistant|>:<begin_of_image>`; image codes follow."""
    return render(template, [prompt, ""]) + BOI


def understanding_prompt(
    template: ChatTemplate, question: str, system_prompt: str = "", num_images: int = 1
) -> str:
    """A question about images, up to and including `<|Assistant|>:`.

    A question without `<image_placeholder>` gets one a line in front of it for each image.
    Raises UserError if it has placeholders, but not one for each image.
    """
    found = question.count(IMAGE)
    if found == 0:
        question = f"{IMAGE}\n" * num_images + question
    elif found != num_images:
        raise UserError(f"the question has {found} {IMAGE}, but there are {num_images} images")
    return render(template, [question, ""], system_prompt)
