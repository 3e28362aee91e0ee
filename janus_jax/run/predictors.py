"""The model that is being trained as benchmarks see it: on the run's own mesh, compiled once."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from janus_jax.checkpoints import LazyArray
from janus_jax.config import JanusConfig
from janus_jax.evaluation import ModelPredictor
from janus_jax.inference import Janus, memory
from janus_jax.models import Params
from janus_jax.models.stacking import REPEATED
from janus_jax.parallel import AXES, BATCH_AXES, batch_sharding, first_only, to_host
from janus_jax.processing import to_float, to_uint8
from janus_jax.run.experiment import Experiment

RECONSTRUCTED = 100  # pictures that go through the image tokenizer at once
_MEMORY_SHARE = 0.5  # of what is free, where several processes must cut batches alike


class Predictors:
    """Makes a predictor of any parameters of a run; keeps what is compiled.

    All processes of a job must ask alike: what they draw lies on the mesh of all.

    Args:
      experiment: the run's objects.
    """

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._janus: Janus | None = None
        model = experiment.model
        self._reconstruct = jax.jit(
            lambda params, x: model.apply({"params": params}, x, method="vq_forward")[
                "reconstruction"
            ]
        )

    def of(
        self,
        params: Params,
        drawing: dict[str, Any] | None = None,
        answering: dict[str, Any] | None = None,
    ) -> ModelPredictor:
        """Draws and answers with `params`, a full tree on the run's mesh; see `ModelPredictor`."""
        return ModelPredictor(self._model(params), drawing, answering)

    def let_go(self) -> None:
        """Frees the weights that were sampled with; what is compiled stays. Predictors of `of` are void then."""
        if self._janus is not None:
            self._janus.weights, self._janus.generation_params = {}, {}

    def of_tokenizer(self, params: Params) -> ModelPredictor:
        """Only reconstructs, so that nothing of the language model is made ready."""
        return ModelPredictor(reconstruct=lambda pictures: self.reconstruct(params, pictures))

    def reconstruct(self, params: Params, pictures: np.ndarray) -> np.ndarray:
        """Pictures uint8 [B, h, w, 3] through the image tokenizer."""
        mesh = self._experiment.mesh
        shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        size = -(-RECONSTRUCTED // shards) * shards
        out = []
        for i in range(0, len(pictures), size):
            part = pictures[i : i + size]
            padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
            batch = jax.device_put(to_float(padded), batch_sharding(mesh))
            out.append(to_uint8(to_host(self._reconstruct(params, batch)))[: len(part)])
        return np.concatenate(out)

    def _model(self, params: Params) -> Janus:
        if self._janus is not None:
            self._janus = self._janus.with_params(params)
            return self._janus
        experiment = self._experiment
        # Free memory is another number in each process, and with it would be the batches.
        limit = None
        if jax.process_count() > 1:
            limit = first_only(lambda: int(_MEMORY_SHARE * memory.free_bytes()))
        self._janus = Janus(
            experiment.janus_config,
            params,
            experiment.processor,
            experiment.model.policy,
            mesh=sampling_mesh(experiment.mesh, experiment.janus_config),
            memory_limit=limit,
        )
        return self._janus


def layer_by_layer(params: Params) -> Params:
    """The tree with its stacked layers as `LazyArray`s, of which one layer is taken at a time.

    Sampling wants other dtypes, and the adapter in the kernels: made of whole stacks, that would be another copy
    or two of the language model beside the training's.
    """

    def lazy(x: jax.Array) -> LazyArray:
        return LazyArray(x.shape, x.dtype, lambda: x, (), lambda index: x[index])

    out = dict(params)
    for module, name in REPEATED.items():
        if name in out.get(module, {}):
            out[module] = {**out[module], name: jax.tree.map(lazy, out[module][name])}
    return out


def sampling_mesh(mesh: Mesh, config: JanusConfig) -> Mesh | None:
    """The mesh that a model of a run samples on: the run's devices; None for a single one.

    Training leaves a dimension whole that `tensor` does not divide, sampling cuts only whole heads: of
    `tensor` stays what divides them, the rest joins `data`.
    """
    if mesh.size == 1:
        return None
    tensor = math.gcd(mesh.shape["tensor"], config.decoder.kv_heads, config.decoder.ffw)
    if tensor == mesh.shape["tensor"]:
        return mesh
    devices = mesh.devices.reshape(-1, 1, tensor)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
