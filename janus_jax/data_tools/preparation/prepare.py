"""Prepares the sources of a manifest, and writes the manifest of what was prepared."""

from __future__ import annotations

import json
from collections.abc import Sequence

import yaml

from janus_jax.checkpoints import tokenizer_mark
from janus_jax.data import make_source
from janus_jax.data.containers.base import missing_package
from janus_jax.data.containers.prepared import INDEX
from janus_jax.data.manifest import FILES, TASK_WORDS, ManifestSource, read_manifest
from janus_jax.data_tools.preparation import image_codes, place
from janus_jax.data_tools.preparation.one_source import Model, Preparation, kind_of
from janus_jax.data_tools.preparation.options import Options
from janus_jax.data_tools.preparation.records import CODES, check_encoder
from janus_jax.errors import UserError, nearest
from janus_jax.files import atomic_write
from janus_jax.interop import open_checkpoint
from janus_jax.processing import Processor, ProcessorConfig, Tokenizer

MANIFEST = "manifest.yaml"
_FIRST_LINE = "# Prepared data, the sources of "


def prepare(options: Options) -> None:
    """Prepares the sources, or what is left to do of them, and prints what there is.

    Raises:
      UserError: bad input, a place that cannot be used, or a source of which too much is left out. Shards
        that are finished are kept, and not made again by the same command.
    """
    _check_libraries()
    sources = read_manifest(options.manifest)
    chosen = _chosen(sources, options)
    codes = options.codes is not False and any(s.task == "gen" for s in chosen)
    if options.codes and not codes:
        raise UserError("--codes: none of these sources has the task generation")
    _check_out(options)
    opened = [(s, make_source(FILES, s.task, s.options, where=s.where)) for s in chosen]
    kinds = [kind_of(source, examples, codes) for source, examples in opened]
    model = _open_model(options, CODES in kinds)
    with place.claimed(options.out):
        for (source, examples), kind in zip(opened, kinds, strict=True):
            Preparation(source, examples, kind, model, options).run()
        _write_manifest(sources, options)


def _open_model(options: Options, codes: bool) -> Model:
    """Of the checkpoint: without codes no weights are read."""
    loaded = open_checkpoint(options.checkpoint, verify=codes)
    sizes, vq = ProcessorConfig.from_dict(loaded.processor), loaded.config.vq
    processor = Processor(sizes, Tokenizer.from_json(loaded.tokenizer_json))
    if not codes:
        return Model(processor, vq.codebook_size, None, {})
    if (vq.image_size, vq.num_codes) != (sizes.gen_image_size, sizes.num_codes):
        raise UserError(
            f"{options.checkpoint} is damaged: its processor has pictures of {sizes.gen_image_size} pixels "
            f"and {sizes.num_codes} codes, its image tokenizer {vq.image_size} and {vq.num_codes}"
        )
    params = image_codes.encoder_params(loaded)
    encode = image_codes.PictureCodes(vq, params, options.batch)
    about = {
        "model": loaded.config.name,
        "tokenizer": tokenizer_mark(vq, params),
        "batch": options.batch,
        "device": encode.device,
    }
    return Model(processor, vq.codebook_size, encode, about)


def _chosen(sources: Sequence[ManifestSource], options: Options) -> list[ManifestSource]:
    names = [source.name for source in sources]
    for name in options.only:
        if name not in names:
            raise UserError(
                f"--source: no source {name!r} in {options.manifest} ({', '.join(names)})."
                f"{nearest(name, names)}"
            )
    return [s for s in sources if not options.only or s.name in options.only]


def _check_libraries() -> None:
    check_encoder()
    try:
        import array_record.python.array_record_module  # noqa: F401
    except ImportError as error:
        raise missing_package("array_record", "array_record", "preparing data") from error


def _check_out(options: Options) -> None:
    """Raises UserError for a place that cannot be used, or a manifest that no preparation wrote."""
    place.check(options.out, MANIFEST)
    path = options.out / MANIFEST
    if path.is_file() and not path.read_bytes().startswith(_FIRST_LINE.encode()):
        raise UserError(
            f"--out {options.out} has a {MANIFEST} that no preparation wrote: choose another place"
        )


def _write_manifest(sources: Sequence[ManifestSource], options: Options) -> None:
    """Writes the manifest of the sources that are prepared, and says how it is used."""
    words = {task: word for word, task in TASK_WORDS.items()}
    ready = [s for s in sources if (options.out / s.name / INDEX).is_file()]
    entries = []
    for source in ready:
        entry = dict(name=source.name, task=words[source.task], format="prepared", path=source.name)
        entry |= {} if source.weight == 1 else {"weight": source.weight}
        entry |= {} if source.stages is None else {"stages": list(source.stages)}
        entry |= source.order
        entries.append(entry)
    text = yaml.safe_dump({"sources": entries}, sort_keys=False)
    path = options.out / MANIFEST
    atomic_write(path, f"{_FIRST_LINE}{json.dumps(options.manifest.name)}\n{text}")
    if missing := [s.name for s in sources if s not in ready]:
        print(f"not prepared yet: {', '.join(missing)}")
    print(f"train with --config.data.manifest={path}")
