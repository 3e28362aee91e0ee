"""A tokenizer that needs no file and reads any text."""

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from janus_jax.processing import Tokenizer
from janus_jax.processing.tokenizer import SPECIAL_TOKENS

OTHERS = ["<tool>", "[INST]", "</s>", "TOOL", "€€"]  # added tokens of other people's vocabularies


def byte_level(special=True, normalizer=None, words=("panda", "   ", "ø")):
    """One token a byte, added control tokens of either kind, and added `words`, which are text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.normalizer = normalizer
    tokens = [*SPECIAL_TOKENS, *(t for t in OTHERS if special or t[0] in "<[")]
    add = backend.add_special_tokens if special else backend.add_tokens
    add([AddedToken(t, normalized=not special, special=special) for t in tokens])
    backend.add_tokens(list(words))
    return Tokenizer(backend)
