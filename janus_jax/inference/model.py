"""A model on the device: read and written, its compiled functions, and what fits into memory."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from janus_jax import models
from janus_jax.checkpoints import LoadedModel, load_leaves, save_model
from janus_jax.config import JanusConfig, Policy
from janus_jax.errors import UserError
from janus_jax.files import DamagedError
from janus_jax.inference import checks, kv_cache, memory
from janus_jax.inference.batching import bucket
from janus_jax.inference.dialogue import Dialogue
from janus_jax.inference.fused_params import Weights, fuse_params, unfuse_params
from janus_jax.inference.generator import ImageGenerator
from janus_jax.inference.image_engine import ImageEngine
from janus_jax.inference.limits import PositionLimits
from janus_jax.inference.logits import SamplingParams, StaticSampling
from janus_jax.inference.options import checked_options
from janus_jax.inference.scoring import Scorer
from janus_jax.inference.slots import SlotEngine
from janus_jax.inference.text_engine import TextEngine
from janus_jax.interop import load_checkpoint, local_directory, open_checkpoint
from janus_jax.interop.adapters import check_adapter, with_adapter
from janus_jax.processing import Processor, ProcessorConfig, Tokenizer


class InferenceModel:
    """What drawing, answering and scoring share.

    Attributes:
      config: architecture, with unrolled layers.
      processor: tokenizer and prompt layouts.
      weights: fused parameters, on the device (`fused_params.fuse_params`).
      policy: dtypes.
      mesh: of the devices, or None.
      int8: what is in int8, of "weights" and "cache".
      max_batch: most pictures or answers computed at once; more are split.
      memory_limit: bytes that a batch may take beside the weights; None takes what is free.
      limits: positions of the model.
      cache_dtype: of keys and values.
      image_engine, text_engine, scorer: compiled functions.
      num_params: parameters of the model.
      origin: of `load`: where the weights come from; of a training run also "stage" and "step".
    """

    origin: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        config: JanusConfig,
        params: models.Params,
        processor: Processor,
        policy: Policy | None = None,
        max_batch: int = 64,
        mesh: Mesh | None = None,
        int8: Collection[str] = (),
        memory_limit: int | None = None,
        donate_params: bool = False,
    ):
        """Takes parameters of either layout and fuses them once.

        Args:
          config: architecture.
          params: parameter tree; it is not kept.
          processor: tokenizer and prompt layouts.
          policy: dtypes.
          max_batch: most pictures or answers at once.
          mesh: from `parallel.make_mesh`: pictures over `data` x `fsdp`, heads over `tensor`.
          int8: "weights", "cache" or both: smaller and, where memory is the limit, faster; not exact.
          memory_limit: bytes that a batch may take beside the weights; None takes what is free.
          donate_params: empties `params` while fusing: the language model is never in memory twice.

        Raises:
          UserError: the processor does not fit the architecture, or an unknown or impossible option.
        """
        checks.check_fit(config, processor)
        self.int8 = checks.check_options(policy, max_batch, mesh, int8, memory_limit)
        self.config = config.replace(scan_layers=False)
        self.processor = processor
        self.max_batch = max_batch
        self.memory_limit = memory_limit
        self.policy = policy or Policy()
        self.mesh = mesh
        self.limits = PositionLimits(config.decoder.max_position)
        self.cache_dtype = kv_cache.stored_dtype(self.policy, "cache" in self.int8)
        tokenizer = processor.tokenizer
        how = dict(cache_dtype=self.cache_dtype, mesh=mesh, int8="weights" in self.int8)
        self.image_engine = ImageEngine(self.config, self.policy, **how)
        self.text_engine = TextEngine(
            self.config, self.policy, tokenizer.image_id, tokenizer.eos_id, **how
        )
        self.scorer = Scorer(self.config, self.text_engine, **how)
        self._set_params(params, donate_params)

    @classmethod
    @checked_options
    def load(
        cls,
        id_or_dir: str | Path,
        step: int | str | None = None,
        *,
        dtype: str = "auto",
        mesh: Mesh | None = None,
        int8: Collection[str] = (),
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        max_batch: int = 64,
        memory_limit: int | None = None,
        verify: bool = True,
        policy: Policy | None = None,
        adapter: str | Path | None = None,
    ) -> Self:
        """Reads a model directory, or a training run's (newest step unless `step`) or one of its steps'.

        A directory in the official or in the Hugging Face format, or a hub id, is read as it is. Weights come one
        layer after the other, so that beside what goes to the device the host holds little more than a layer.

        Args:
          id_or_dir: what to read.
          step: of a training run; "best" is the one with the lowest held-out loss (or else the lowest training
            loss) of those that are there.
          dtype: of parameters and arithmetic: "float32", "bfloat16" or "auto", which is float32 on a CPU.
          mesh: from `parallel.make_mesh`: pictures over `data` x `fsdp`, heads over `tensor`.
          int8: "weights", "cache" or both: smaller and, where memory is the limit, faster; not exact.
          revision: branch, tag or commit of a hub id.
          token: of the hub, for models that are not public.
          cache_dir: where a conversion that was kept is looked for; by default $JANUS_JAX_CACHE or the user's
            cache directory.
          max_batch: most pictures or answers computed at once; more are split.
          memory_limit: bytes that a batch may take beside the weights; None takes what is free.
          verify: compare the files with their checksums; a damaged step of a run is passed over.
          policy: other combinations of dtypes than `dtype` can say.
          adapter: directory (or hub id) of a LoRA adapter in the layout of PEFT, such as RUN/adapter/STAGE of a
            training run; it is added to the weights, in their dtype.

        Raises:
          UserError: nothing is there, or no Janus checkpoint; or a bad option, before anything is read.

        Example:
          >>> Janus.load("deepseek-ai/Janus-Pro-1B", dtype="bfloat16", revision="main")
          Janus(janus-pro-1b, 2.09B parameters, bfloat16, NVIDIA H200)
        """
        checks.check_options(policy, max_batch, mesh, int8, memory_limit)
        checks.check_source(id_or_dir, step)
        checks.check_hub(revision, token, cache_dir)
        verify = checks.flag("verify", verify)
        added = None if adapter is None else checks.path("adapter", adapter)
        if policy is not None and dtype != "auto":
            raise UserError("dtype and policy both set dtypes: give one of them")
        policy = policy or Policy.auto(dtype)
        where = dict(step=step, verify=verify, revision=revision, token=token, cache_dir=cache_dir)

        if added is not None:
            added = local_directory(added, token=token)
            check_adapter(added, id_or_dir)  # before gigabytes are downloaded

        def make(loaded: LoadedModel) -> Self:
            if added is not None:
                loaded = with_adapter(loaded, added)
            tokenizer = Tokenizer.from_json(loaded.tokenizer_json)
            model = cls(
                loaded.config,
                loaded.params,
                Processor(ProcessorConfig.from_dict(loaded.processor), tokenizer),
                policy,
                max_batch=max_batch,
                mesh=mesh,
                int8=int8,
                memory_limit=memory_limit,
                donate_params=True,
            )
            model.origin = MappingProxyType(dict(loaded.origin))
            return model

        opened = open_checkpoint(id_or_dir, **where)
        with contextlib.suppress(DamagedError):
            model = make(opened)
            opened.check()
            return model
        # Damage that no checksum has told of: reading all of it first passes over a damaged step of a run, or
        # says what can be done.
        del opened
        return make(load_checkpoint(id_or_dir, **where))

    @checked_options
    def save(self, path: str | Path) -> None:
        """Writes a model directory that `load` reads back with equal numbers, in the dtypes of now.

        A model in bfloat16 gives equal numbers when it is loaded with `dtype="bfloat16"`; "auto" computes in
        float32 on a CPU.

        Raises:
          UserError: `path` is no path; weights in int8, or of several processes; something else is in the
            place; a full disk.

        Example:
          >>> janus.save("models/mine")
          >>> again = Janus.load("models/mine")
        """
        if not isinstance(path, str | os.PathLike):
            raise UserError(f"path must be a path, not {type(path).__name__}")
        if "weights" in self.int8:
            raise UserError("a model with weights in int8 cannot be saved: load it without int8")
        if jax.process_count() > 1:
            raise UserError("a model of several processes cannot be saved: load it in one")
        params = unfuse_params(self.weights, self.config, self.policy, self.generation_params)
        tokenizer = self.processor.tokenizer.to_json()
        save_model(path, self.config, self.processor.config.to_dict(), tokenizer, params)

    def with_params(self, params: models.Params) -> Self:
        """The same model with other parameters; shares everything that is compiled."""
        other = copy.copy(self)
        other._set_params(params)
        return other

    def with_prompts(self, template: str, system_prompt: str = "") -> Self:
        """The same model asked in another chat template and system prompt; shares weights and what is compiled.

        Raises:
          UserError: no such template, or half a character in the system prompt.
        """
        fields = self.processor.config.to_dict()
        fields |= {"template": template, "system_prompt": system_prompt}
        other = copy.copy(self)
        other.processor = Processor(ProcessorConfig.from_dict(fields), self.processor.tokenizer)
        return other

    def _set_params(self, params: models.Params, donate_params: bool = False) -> None:
        params = {name: part for name, part in params.items() if name != "aux"}
        self.num_params = sum(x.size for x in jax.tree.leaves(params))
        # A few megabytes, of which the fused weights keep the product only; `save` writes them. Arrays on a
        # device are copied: training gives its own away.
        params |= load_leaves({name: params[name] for name in ("gen_embed", "gen_adaptor")})
        self.generation_params = jax.tree.map(
            lambda x: x if isinstance(x, np.ndarray) else jnp.copy(x),
            {name: params[name] for name in ("gen_embed", "gen_adaptor")},
        )
        self.weights: Weights = fuse_params(
            params, self.config, self.policy, self.mesh, "weights" in self.int8, donate_params
        )

    def generator(self) -> ImageGenerator:
        """Draws with the weights of now."""
        return ImageGenerator(
            self.image_engine,
            self.weights,
            self.processor.tokenizer.pad_id,
            self.config.vq.num_codes,
            self.data_shards,
        )

    def dialogue(self, rows: int, sampling: SamplingParams, static: StaticSampling) -> Dialogue:
        """A batch of conversations with the weights of now."""
        tokenizer = self.processor.tokenizer
        return Dialogue(
            self.text_engine,
            self.weights,
            rows,
            sampling,
            static,
            tokenizer.pad_id,
            tokenizer.eos_id,
        )

    def slot_engine(self, ways: int, codes: bool, slots: int, steps: int) -> SlotEngine:
        """Compiled functions for rows that come and go; see `SlotEngine`."""
        how = dict(cache_dtype=self.cache_dtype, mesh=self.mesh, int8="weights" in self.int8)
        return SlotEngine(self.config.decoder, ways, codes, slots, steps, **how)

    @property
    def data_shards(self) -> int:
        """Over how many devices the pictures of a batch are cut."""
        return 1 if self.mesh is None else self.mesh.size // self.mesh.shape["tensor"]

    def images_that_fit(self, prompt_length: int, guided: bool) -> int:
        """Pictures at once: what memory allows, about `max_batch` at most.

        Raises:
          UserError: not even one fits.
        """
        row = memory.picture_bytes(self.config, bucket(prompt_length), guided, self.cache_dtype)
        row += memory.decode_bytes(self.config, 1)
        shards = self.data_shards
        max_batch = max(1, self.max_batch // shards)
        return shards * memory.max_rows_that_fit(row, self.memory_limit, max_batch, "picture")

    def answers_that_fit(self, cache_length: int, pictures: int = 1) -> int:
        """Answers at once, each after at most so many pictures.

        Raises:
          UserError: not even one fits.
        """
        row = self._answer_bytes(cache_length, pictures)
        return memory.max_rows_that_fit(row, self.memory_limit, self.max_batch, "answer")

    def check_answers_fit(self, rows: int, cache_length: int) -> None:
        """Raises UserError if memory has no room for so many conversations together."""
        what = f"{rows} conversation(s) of up to {cache_length} tokens"
        memory.check_rows(self._answer_bytes(cache_length), rows, self.memory_limit, what)

    def codes_that_fit(self) -> int:
        """Pictures that go through the image tokenizer at once."""
        row = memory.decode_bytes(self.config, 1)
        return memory.max_rows_that_fit(row, self.memory_limit, self.max_batch, "picture")

    def scores_that_fit(self, length: int, targets: int, classes: int) -> int:
        """Rows of so many tokens that are scored at once."""
        row = memory.score_bytes(self.config, length, targets, classes)
        return memory.max_rows_that_fit(row, self.memory_limit, self.max_batch, "row to score")

    def _answer_bytes(self, cache_length: int, pictures: int = 1) -> int:
        return memory.answer_bytes(
            self.config, bucket(cache_length), self.cache_dtype, max(pictures, 1)
        )

    def __repr__(self) -> str:
        count, unit = self.num_params, ""
        for size, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
            if count >= size:
                count, unit = round(count / size, 2), name
                break
        int8 = f", int8 {' and '.join(sorted(self.int8))}" if self.int8 else ""
        return (
            f"{type(self).__name__}({self.config.name}, {count}{unit} parameters, "
            f"{self.policy.compute_dtype}{int8}, {self._place()})"
        )

    def _place(self) -> str:
        if self.mesh is None:
            (device,) = self.weights["final_norm"].devices()
            return str(device.device_kind if device.platform != "cpu" else "cpu")
        sizes = ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items() if size > 1)
        kind: Any = self.mesh.devices.flat[0].device_kind
        return f"{self.mesh.size} x {kind}" + (f" ({sizes})" if sizes else "")
