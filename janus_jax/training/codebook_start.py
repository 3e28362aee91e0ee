"""Embeddings and head of image codes that start from the codebook, for a decoder that has never seen codes.

Only for a tokenizer that was trained from nothing in the same run; released models bring their own tables.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from janus_jax.models import Params

_NEVER = -10.0  # logit of a code that cannot occur


def start_from_codebook(params: Params, key: jax.Array) -> Params:
    """`params` whose embedding of image codes and image head start from the tokenizer's codebook.

    Codes that look alike start alike: the embedding is the codebook at unit size, and the head scores a
    code by the product of its vector with a random projection of the hidden state, plus half of what it had.
    What is learnt about one code then moves those next to it, so rare ones come early. A code whose vector an
    earlier one has, too (`merge_duplicates`), is never chosen by the quantiser, so the head starts without it.

    Args:
      params: full tree; codebook [V, c], embedding of codes [V, c], kernel of the head [D, V], bias [V].
      key: of the projection [D, c].

    Returns:
      A new tree; everything but those three arrays is shared with `params`.
    """
    codebook = params["vq"]["quantize"]["embedding"]
    unit = codebook / jnp.maximum(jnp.linalg.norm(codebook, axis=-1, keepdims=True), 1e-12)
    head = params["image_head"]["head"]
    width, dim = head["kernel"].shape[0], unit.shape[-1]
    projection = jnp.linalg.qr(jax.random.normal(key, (width, dim)))[0]  # orthonormal columns
    kernel = projection @ unit.T + 0.5 * head["kernel"]
    same = jnp.all(codebook[:, None] == codebook[None], axis=-1)
    duplicate = jnp.any(jnp.tril(same, -1), axis=-1)
    bias = jnp.where(duplicate, _NEVER, head["bias"])
    return params | {
        "gen_embed": {"embedding": unit * dim**0.5},
        "image_head": params["image_head"] | {"head": head | {"kernel": kernel, "bias": bias}},
    }
