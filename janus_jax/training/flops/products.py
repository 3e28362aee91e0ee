"""Adding up the products of a network, forward and backward.

A product of [n, I] with a weight [I, O] takes 2 n I O operations forward. Backward it takes as many again for
the gradient of its inputs, where something that trains lies before it, and as many for the gradient of the
weight, where that trains: 6 for each weight and token where all trains, 2 where nothing before it or in it
does, 4 in a frozen network behind something that trains. Norms, activations, softmax and sums are left out, as
is usual (Korthikanti et al. 2022, arXiv 2205.05198, appendix A; PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Flops(NamedTuple):
    """Operations of a step.

    Attributes:
      forward: of the forward pass.
      backward: of both kinds of gradients.
      recomputed: of what rematerialisation does a second time.
    """

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0

    @property
    def model(self) -> float:
        """What the model needs, however it is computed: for MFU."""
        return self.forward + self.backward

    @property
    def hardware(self) -> float:
        """What is computed: for HFU."""
        return self.model + self.recomputed

    def plus(self, other: Flops, times: float = 1.0) -> Flops:
        return Flops(*(a + b * times for a, b in zip(self, other, strict=True)))


class Products:
    """The running sum of a network's products, walked from its inputs to the loss.

    Methods take and return whether a value needs a gradient: whether anything that trains lies before it.

    Args:
      trainable: nested dicts with the keys of what trains; leaves do not matter.
      remat: of the blocks (see `models.REMAT`).
    """

    def __init__(self, trainable: Mapping[str, Any], remat: str = "none"):
        self._trainable, self._remat = trainable, remat
        self.forward = self.backward = self.recomputed = 0.0
        self._attention_again = 0.0  # what of attention gradients need
        self._scores = 0.0  # of attention; as many operations as its weighted sums

    @property
    def flops(self) -> Flops:
        return Flops(self.forward, self.backward, self.recomputed)

    def trains(self, path: str) -> bool:
        """Whether a parameter, or any below a path such as "decoder/lm_head", trains."""
        node: Any = self._trainable
        for key in path.split("/"):
            if not isinstance(node, Mapping) or key not in node:
                return False
            node = node[key]
        return node != {}

    def dense(
        self, path: str, inputs: float, outputs: float, count: float, needs: bool, copies: float = 1
    ) -> bool:
        """`count` rows through the weights [inputs, outputs] called `path`/kernel.

        Args:
          copies: how often rows and weights meet; the k x k positions of a convolution's kernel.
        """
        one = 2.0 * inputs * outputs * count * copies
        self.forward += one
        self.backward += one * (needs + self.trains(f"{path}/kernel"))
        return needs or self.trains(path)

    def attention(
        self, width: float, pairs: float, q: bool, k: bool, v: bool, after: str = ""
    ) -> bool:
        """Scores and weighted sums of `pairs` of positions, over heads of together `width`.

        Args:
          after: path of the product that takes the sums; its weights' gradient needs them.
        """
        one = 2.0 * width * pairs
        self.forward += 2 * one
        self._scores += one
        self._attention_again += one * (1 + self.trains(f"{after}/kernel"))
        # Of the weights and of v; then of q and of k.
        self.backward += one * ((q or k) + v + q + k)
        return q or k or v

    @contextlib.contextmanager
    def block(self, last: float) -> Iterator[None]:
        """Around a block that is rematerialised and has a backward pass.

        Args:
          last: operations of its last product, whose result no gradient needs.
        """
        forward, attention, scores = self.forward, self._attention_again, self._scores
        yield
        if self._remat == "full":
            self.recomputed += self.forward - forward - last
        elif self._remat == "attention":  # keeps the sums; their gradient needs the scores again
            self.recomputed += self.forward - forward - last - (self._scores - scores)
        elif self._remat == "dots+attention":
            self.recomputed += self._scores - scores
        elif self._remat == "dots":  # keeps the products with weights
            self.recomputed += self._attention_again - attention
