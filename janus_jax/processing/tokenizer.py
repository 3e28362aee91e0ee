"""Text <-> token ids, with every special token looked up by its string.

Ids of the special tokens differ between Janus-Pro-1B and Janus-Pro-7B, so none is written down
here. `tokenizers.Tokenizer` is used directly: the LlamaTokenizer of transformers 5 replaces the
byte-level pre-tokenizer of DeepSeek and silently drops spaces (transformers #45488).

Control tokens are what frames a conversation: all tokens beside the model's own vocabulary, but for those
that are mere text (`_is_text`). Only the program writes them, as `Control`; where somebody else's text spells one
("<image_placeholder>"), the text is encoded letter by letter, like any other.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from janus_jax.errors import UserError
from janus_jax.untrusted import printable, read_text

# The bars are U+FF5C and the blocks U+2581.
BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
BOI = "<begin_of_image>"
EOI = "<end_of_image>"
IMAGE = "<image_placeholder>"
USER = "<|User|>"
ASSISTANT = "<|Assistant|>"
UNK = "<unk>"
SPECIAL_TOKENS = (PAD, BOS, EOS, BOI, EOI, IMAGE, USER, ASSISTANT)

# Ids that no token has, beside as many as there are tokens: writing a tokenizer takes memory for each id.
_MAX_GAPS = 4096

# `<tool>`, `[INST]`, `{{user}}`, `|pad|`; and `<|` or `|>` anywhere.
_FRAME = re.compile(r"^\s*(<.+>|\[.+\]|\{.+\}|\|.+\|)\s*$|<\||\|>", re.DOTALL)

_WORD = r"\w+|[^\w\s]"


class Control(str):
    """A control token that the program itself writes. What is made of it (`+`, `join`, f-strings) is mere
    text again, so that nothing becomes one by accident."""


class Tokenizer:
    """A `tokenizers.Tokenizer` that knows the tokens of Janus. Never adds BOS or EOS by itself."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend
        self._word_level = isinstance(backend.model, models.WordLevel)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Reads a `tokenizer.json`. Raises UserError if it is missing or cannot be parsed."""
        return cls.from_json(read_text(path), origin=printable(path, 200))

    @classmethod
    def from_json(cls, text: str, origin: str = "the tokenizer JSON") -> Tokenizer:
        """Parses the contents of a `tokenizer.json`; `origin` names it in the UserError.

        Raises:
          UserError: it is none, has no token, has ids far beyond the number of its tokens, or cannot encode.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(text)
            backend.no_padding()
            backend.no_truncation()
            ids = backend.get_vocab(with_added_tokens=True).values()
            _check_ids(ids, origin)
            backend.encode("\ue000", add_special_tokens=False)  # a letter that no vocabulary has
        except BaseException as error:  # the Rust side raises plain Exception, and panics
            if isinstance(error, UserError) or not (
                isinstance(error, Exception) or type(error).__name__ == "PanicException"
            ):
                raise
            reason = printable(error, 200)
            raise UserError(f"{origin} is not a Hugging Face tokenizer.json: {reason}") from error
        return cls(backend)

    def to_json(self) -> str:
        """The contents of the `tokenizer.json` that `from_json` reads back."""
        return self._backend.to_str()

    def with_special_tokens(self, tokens: Iterable[str]) -> Tokenizer:
        """A copy in which every missing token is appended, as the official processor does for
        `<image_placeholder>` (Janus-1.3B, whose tokenizer.json may lack it).

        Raises:
          UserError: the ids have gaps, so that there is no telling which id comes next.
        """
        missing = [token for token in tokens if self.token_id(token) is None]
        copy = Tokenizer.from_json(self.to_json())
        copy._backend.add_special_tokens(_added(missing))
        if copy.vocab_size != self.vocab_size + len(missing):
            raise UserError(f"cannot add {missing} to the tokenizer: its ids have gaps")
        return copy

    def encode(self, text: str) -> list[int]:
        """Ids of a whole prompt that can be trusted, without BOS: special-token strings inside become their
        one id. For what people write, there is `encode_text`.

        Raises:
          UserError: half a character (a lone surrogate) in it.
        """
        return _encode(self._backend, text).ids

    def encode_text(self, text: str) -> list[int]:
        """Ids of what somebody wrote; no control token is among them. See `encode_pieces`."""
        return self.encode_pieces([text])

    def encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """Ids of a prompt in pieces: a `Control` is its one id, and every other piece is mere text.

        The ids are those of the joined string, unless that has other control tokens than `pieces`.
        A `Control` that the vocabulary lacks is text, too, such as the roles of Janus-1.3B.

        Raises:
          UserError: half a character (a lone surrogate) in it, or a control token in the text that this
            vocabulary cannot spell in other tokens.
        """
        known = [isinstance(p, Control) and self.token_id(p) is not None for p in pieces]
        wanted = [self.token_id(p) for p, control in zip(pieces, known, strict=True) if control]
        ids = self.encode("".join(pieces))
        if [i for i in ids if i in self._control_ids] == wanted:
            return ids
        ids = []
        for control, run in groupby(zip(known, pieces, strict=True), key=lambda pair: pair[0]):
            run = [piece for _, piece in run]
            ids += map(self.require_id, run) if control else self._spell("".join(run))
        return ids

    def _spell(self, text: str) -> list[int]:
        """Ids of `text` in tokens that are mere text."""
        ids = [self._vocabulary.get(i, i) for i in _encode(self._speller, text).ids]
        for i in ids:
            if i in self._control_ids:
                raise UserError(
                    f"the text has {self._backend.id_to_token(i)!r} in it, which is a control token of "
                    "the model and cannot be written in other tokens: leave it out"
                )
        return ids

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        """All ids that text must not have."""
        added = self._backend.get_added_tokens_decoder()
        ids = {i for i, token in added.items() if not _is_text(token)}
        ids |= {i for i in map(self.token_id, SPECIAL_TOKENS) if i is not None}
        unknown = getattr(self._backend.model, "unk_token", None) or UNK
        return frozenset(ids - {self.token_id(unknown)})  # any text may have that one

    @cached_property
    def _speller(self) -> tokenizers.Tokenizer:
        """The same model without its control tokens, which hence are text. Other ids: `_vocabulary`."""
        speller = tokenizers.Tokenizer(self._backend.model)
        speller.normalizer = self._backend.normalizer
        speller.pre_tokenizer = self._backend.pre_tokenizer
        added = self._backend.get_added_tokens_decoder()
        speller.add_tokens([token for _, token in sorted(added.items()) if _is_text(token)])
        return speller

    @cached_property
    def _vocabulary(self) -> dict[int, int]:
        """Ids of added tokens in `_speller` -> ours."""
        added = self._speller.get_added_tokens_decoder()
        return {i: self.require_id(token.content) for i, token in added.items()}

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are left out."""
        text = self._backend.decode([int(i) for i in ids], skip_special_tokens=True)
        if self._word_level:  # joined with spaces: glue the punctuation back
            text = re.sub(r"\s*([-'’/])\s*", r"\1", text)  # noqa: RUF001
            text = re.sub(r"\s+([.,;:?!%)])", r"\1", text).replace("( ", "(")
        return text

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the vocabulary lacks, in order and without repeats.

        Always empty for a byte-level tokenizer, which can spell any word. `<image_placeholder>` is known.
        """
        if not self._word_level:
            return []
        text = text.replace(IMAGE, " ")
        encoding = _encode(self._speller, text)
        unknown = self._speller.token_to_id(UNK)
        words = [
            text[start:end].lower()
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token == unknown
        ]
        return list(dict.fromkeys(words))

    def token_id(self, token: str) -> int | None:
        """Id of one exact token string, None if the vocabulary lacks it."""
        return self._backend.token_to_id(token)

    def require_id(self, token: str) -> int:
        """Id of one exact token string; UserError that names the token if it is missing."""
        found = self.token_id(token)
        if found is None:
            raise UserError(
                f"the tokenizer has no token {token!r}, which Janus needs: use the tokenizer.json "
                "that belongs to the checkpoint"
            )
        return found

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def bos_id(self) -> int:
        return self.require_id(BOS)

    @cached_property
    def eos_id(self) -> int:
        return self.require_id(EOS)

    @cached_property
    def pad_id(self) -> int:
        return self.require_id(PAD)

    @cached_property
    def boi_id(self) -> int:
        return self.require_id(BOI)

    @cached_property
    def eoi_id(self) -> int:
        return self.require_id(EOI)

    @cached_property
    def image_id(self) -> int:
        return self.require_id(IMAGE)


def build_word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """A word-level tokenizer for a model with a closed vocabulary.

    Text is lower-cased and split into words and single punctuation marks. Ids: the special tokens
    first, then `<unk>`, then the words in the order given (split the same way, repeats dropped).
    The ":" of the chat template is always included.
    """
    vocab = {token: i for i, token in enumerate((*SPECIAL_TOKENS, UNK))}
    for piece in (":", *(p for word in words for p in re.findall(_WORD, word.lower()))):
        vocab.setdefault(piece, len(vocab))
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_WORD), "isolated")]
    )
    backend.add_special_tokens(_added(SPECIAL_TOKENS))
    return Tokenizer(backend)


def half_character(text: str) -> str:
    """Says where half a character (a lone surrogate, such as JSON's "\\ud800") is in `text`; "" if nowhere.

    No file and no tokenizer can hold one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"half a character in it (U+{ord(text[error.start]):04X} at position {error.start}, a lone "
            "surrogate)"
        )
    return ""


def _check_ids(ids: Collection[int], origin: str) -> None:
    if not ids:
        raise UserError(f"{origin} has an empty vocabulary: it is no tokenizer of Janus")
    if max(ids) > 2 * len(ids) + _MAX_GAPS:
        raise UserError(
            f"{origin} has {len(ids)} tokens, but one of them has the id {max(ids)}: it is damaged"
        )


def _encode(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    if half := half_character(text):
        raise UserError(f"the text has {half}, which cannot be encoded: leave it out")
    try:
        return backend.encode(text, add_special_tokens=False)
    except Exception as error:  # the Rust side raises plain Exception
        raise UserError(f"the tokenizer cannot encode the text: {error}") from error


def _is_text(token: tokenizers.AddedToken) -> bool:
    """Whether an added token is text: a character that the base vocabulary lacks (such as the "ø" of
    Janus-Pro-7B), or whatever is neither marked as special nor looks like a frame, such as a word that
    somebody added to fine-tune. In doubt it is none: then it is spelled, which costs tokens, not safety."""
    text = token.content
    if len(text) == 1 and text.isprintable():
        return True
    folded = _fold(text)
    framed = _FRAME.search(folded) or any(_fold(name) in folded for name in SPECIAL_TOKENS)
    return not (token.special or framed)


def _fold(text: str) -> str:
    """Without width and case, so that normalizers make no frame of what is none."""
    return unicodedata.normalize("NFKC", text).casefold()


def _added(tokens: Iterable[str]) -> list[tokenizers.AddedToken]:
    """Added tokens are matched in the raw text, before lower-casing."""
    return [tokenizers.AddedToken(t, normalized=False, special=True) for t in tokens]
