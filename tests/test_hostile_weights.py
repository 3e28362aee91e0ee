"""Weights of PyTorch that are damaged on purpose, or that other tools wrote: refused in one line, or read."""

import os
import pickle
import re

import numpy as np
import pytest
from hostile import (
    DEEP,
    DIGITS,
    ESCAPE,
    HEAD,
    LLAMA,
    LONG,
    Runs,
    archive,
    bomb,
    both,
    copy_of,
    deflated,
    edit,
    header,
    index,
    info,
    limits,
    make_torch_model,
    pickled,
    put,
    refuses,
    rename,
    replace,
    special,
    state,
    use_torch,
)

from janus_jax.interop.conversion.source import open_source

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

# What is wrong -> (change, words of the message).
TORCH = {
    # model.safetensors
    "header of 2^63": (header(size=2**63), "model.safetensors"),
    "header of 2^31": (header(size=2**31), "model.safetensors"),
    "header of 20 MB": (
        header(text=lambda t: t + " " * (20 * 10**6)),
        "model.safetensors",
    ),
    "no header": (header(size=0), "model.safetensors"),
    "seven bytes": (header(keep=7), "model.safetensors"),
    "no bytes": (header(keep=0), "model.safetensors"),
    "half of the data": (header(keep=10**6), "model.safetensors"),
    "deep header": (header(text=lambda t: DEEP), "model.safetensors"),
    "digits in the header": (
        header(text=lambda t: t.replace("[512,64]", f"[{DIGITS}]").replace("512", DIGITS)),
        "model.safetensors",
    ),
    "list of a header": (header(text=lambda t: f"[{t}]"), "model.safetensors"),
    "overlap": (
        header(
            lambda h: h[HEAD].update(
                data_offsets=h["language_model.model.embed_tokens.weight"]["data_offsets"]
            )
        ),
        "model.safetensors",
    ),
    "backwards": (
        header(lambda h: h[HEAD].update(data_offsets=h[HEAD]["data_offsets"][::-1])),
        "model.safetensors",
    ),
    "beyond the file": (info(data_offsets=[0, 2**40]), "model.safetensors"),
    "negative offset": (info(data_offsets=[-8, 0]), "model.safetensors"),
    "offsets of text": (info(data_offsets=["0", "8"]), "model.safetensors"),
    "no offsets": (header(lambda h: h[HEAD].pop("data_offsets") and None), "model.safetensors"),
    "dtype F33": (info(dtype="F33"), "model.safetensors"),
    "long dtype": (info(dtype="F" * LONG), "model.safetensors"),
    "escapes in a dtype": (info(dtype=ESCAPE), "model.safetensors"),
    "dtype of a number": (info(dtype=32), "model.safetensors"),
    "dtype of another size": (info(dtype="F64"), "model.safetensors"),
    "shape that overflows": (info(shape=[2**40, 2**40]), "model.safetensors"),
    "negative shape": (info(shape=[-512, -64]), "model.safetensors"),
    "shape of text": (info(shape="512"), "model.safetensors"),
    "many axes": (info(shape=[1] * 50_000 + [512, 64]), "lm_head"),
    "metadata of lists": (header(lambda h: h.update(__metadata__=[1])), "model.safetensors"),
    "long name": (header(lambda h: h | {"x" * LONG: h.pop(HEAD)}), "letters"),
    "escapes in a name": (header(lambda h: h | {ESCAPE: h.pop(HEAD)}), "name"),
    "line end in a name": (header(lambda h: h | {HEAD + "\n": h.pop(HEAD)}), "name"),
    "traversal in a name": (header(lambda h: h | {"../../x": h.pop(HEAD)}), "unexpected"),
    "empty name": (header(lambda h: h | {"": h.pop(HEAD)}), "name|unexpected"),
    "digits in a name": (
        header(lambda h: h | {f"language_model.model.layers.{DIGITS}.x": h.pop(HEAD)}),
        "letters",
    ),
    "200,000 tensors": (
        header(
            lambda h: (
                h
                | {
                    f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                    for i in range(200_000)
                }
            )
        ),
        "tensors|header",
    ),
    "same name twice": (
        header(
            text=lambda t: t.replace(
                "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
            )
        ),
        "model.safetensors|missing",
    ),
    # shards
    "absolute shard": (index(**{HEAD: "/etc/passwd.safetensors"}), "index.json"),
    "shard above": (index(**{HEAD: "../model.safetensors"}), "index.json"),
    "shard below": (index(**{HEAD: "a/model.safetensors"}), "index.json"),
    "shard of dots": (index(**{HEAD: ".."}), "index.json"),
    "shard of no name": (index(**{HEAD: ""}), "index.json"),
    "shard of another kind": (index(**{HEAD: "config.json"}), "index.json"),
    "shard with a zero byte": (index(**{HEAD: "\0.safetensors"}), "index.json"),
    "shard of escapes": (index(**{HEAD: ESCAPE + ".safetensors"}), "index.json"),
    "long shard": (index(**{HEAD: "x" * LONG + ".safetensors"}), "index.json"),
    "shard of a list": (index(**{HEAD: ["model.safetensors"]}), "index.json"),
    "10,000 shards": (
        index(**{f"x{i}": f"{i}.safetensors" for i in range(10_000)}),
        "index.json",
    ),
    "long names in the index": (
        index(**{"x" * LONG + str(i): "model.safetensors" for i in range(9)}),
        "index",
    ),
    "escapes in the index": (index(**{ESCAPE: "model.safetensors"}), "index"),
    "no weight_map": (put("model.safetensors.index.json", "{}"), "weight_map"),
    "weight_map of a list": (
        put("model.safetensors.index.json", '{"weight_map": []}'),
        "weight_map",
    ),
    "deep index": (put("model.safetensors.index.json", DEEP), "index.json"),
    "empty index": (index(), "index.json"),
    "pipe as a shard": (
        both(index(**{HEAD: "model-1.safetensors"}), special("model-1.safetensors", "pipe")),
        "model-1.safetensors",
    ),
    # pytorch_model.bin
    "code": (pickled(lambda s: s | {"a": Runs(os.mkdir, "code_has_run")}), "code"),
    "code of torch": (pickled(lambda s: s | {"a": Runs(torch.save, 1, "code_has_run")}), "code"),
    "code, old format": (
        pickled(
            lambda s: {"a": Runs(os.mkdir, "code_has_run")}, _use_new_zipfile_serialization=False
        ),
        "pytorch_model.bin",
    ),
    "plain pickle of code": (
        both(
            lambda d: (d / "model.safetensors").unlink(),
            put("pytorch_model.bin", pickle.dumps(Runs(os.mkdir, "code_has_run"))),
        ),
        "pytorch_model.bin",
    ),
    "memory": (pickled(lambda s: s | {"a": Runs(bytearray, 10**11)}), "pytorch_model.bin"),
    "memory of torch": (
        pickled(lambda s: s | {"a": Runs(torch.Tensor, 10**6, 10**6)}),
        "pytorch_model.bin",
    ),
    "zip bomb": (archive(bomb), "pytorch_model.bin"),
    "compressed weights": (archive(deflated), "pytorch_model.bin"),
    "no pickle in the zip": (archive(lambda p, z: z.writestr("a/b", b"x")), "pytorch_model.bin"),
    "empty zip": (archive(lambda p, z: None), "pytorch_model.bin"),
    "text": (both(pickled(lambda s: None), put("pytorch_model.bin", "hello")), "pytorch_model.bin"),
    "no bytes in .bin": (
        both(pickled(lambda s: None), put("pytorch_model.bin", "")),
        "pytorch_model.bin",
    ),
    "list of tensors": (pickled(lambda s: list(s.values())), "state dict"),
    "numbers for names": (pickled(lambda s: dict(enumerate(s.values()))), "state dict"),
    "training checkpoint": (
        pickled(lambda s: {"epoch": 3, "state_dict": dict(s), "optimizer": {}}),
        "state_dict",
    ),
    "lightning": (pickled(lambda s: {"model": dict(s)}), "'model'"),
    "sparse tensor": (
        pickled(lambda s: s | {HEAD: s[HEAD].float().to_sparse()}),
        "plain tensors",
    ),
    "meta tensor": (pickled(lambda s: s | {HEAD: s[HEAD].to("meta")}), "plain tensors"),
    "complex tensor": (pickled(lambda s: s | {HEAD: s[HEAD].to(torch.complex64)}), "complex64"),
    "quantized tensor": (
        pickled(
            lambda s: s | {HEAD: torch.quantize_per_tensor(s[HEAD].float(), 0.1, 0, torch.qint8)}
        ),
        "qint8|lm_head|code",
    ),
    "tensor beyond its storage": (
        pickled(
            lambda s: (
                s
                | {
                    HEAD: Runs(
                        torch._utils._rebuild_tensor_v2,
                        s[HEAD].storage(),
                        *(0, (10**6, 10**5), (10**5, 1), False, {}),
                    )
                }
            )
        ),
        "pytorch_model.bin",
    ),
    "axes of no length": (
        pickled(lambda s: s | {HEAD: s[HEAD][:1, :1].expand(10**6, 10**6)}),
        "lm_head",
    ),
    "long name in .bin": (pickled(lambda s: s | {"x" * LONG: s[HEAD]}), "letters"),
    "escapes in a name of .bin": (pickled(lambda s: s | {ESCAPE: s[HEAD].clone()}), "name"),
    # what other tools write
    **{
        f"prefix {prefix}": (rename(lambda n, p=prefix: p + n), re.escape(repr(prefix)))
        for prefix in ("base_model.model.", "model.", "model.model.", "student.", "a.b.c.d.")
    },
    "prefix of most": (
        rename(lambda n: n if n.startswith("gen_") else f"janus.{n}"),
        "'janus.'",
    ),
    "adapter": (
        state(
            lambda s: {
                f"base_model.model.{k.removesuffix('.weight')}.lora_{ab}.weight": v
                for k, v in s.items()
                if "q_proj" in k
                for ab in "AB"
            }
        ),
        "adapter",
    ),
    "adapter_model.safetensors": (
        both(
            lambda d: (d / "model.safetensors").rename(d / "adapter_model.safetensors"),
            put("adapter_config.json", "{}"),
        ),
        "adapter",
    ),
    "adapter alone": (
        both(
            lambda d: (d / "model.safetensors").rename(d / "adapter_model.safetensors"),
            put("adapter_config.json", "{}"),
            lambda d: (d / "config.json").unlink(),
        ),
        "adapter",
    ),
    "adapter not merged": (
        rename(
            lambda n: "base_model.model." + n.replace("q_proj.weight", "q_proj.base_layer.weight")
        ),
        "adapter",
    ),
    "no lm_head": (state(lambda s: s.pop(HEAD) is None), "tied"),
    "integers": (state(lambda s: s | {"step": np.array([3])}), "step has dtype I64"),
    "bitsandbytes": (
        edit("config.json", "quantization_config", value={"quant_method": "bitsandbytes"}),
        "quantized.*bitsandbytes",
    ),
    "gptq": (
        edit("config.json", "quantization_config", value={"quant_method": "gptq", "bits": 4}),
        "quantized.*gptq",
    ),
    "awq in the section": (
        edit(*LLAMA, "quantization_config", value={"quant_method": "awq"}),
        "quantized.*awq",
    ),
    "quantization of escapes": (
        edit("config.json", "quantization_config", value={"quant_method": ESCAPE * 999}),
        "quantized",
    ),
    "quantization of text": (edit("config.json", "quantization_config", value="x"), "quantized"),
    "int8 by its names": (
        state(
            lambda s: (
                s | {HEAD: np.ones((512, 64), np.int8), HEAD[:-6] + "SCB": np.ones(512, np.float32)}
            )
        ),
        "quantized",
    ),
    "4 bits by their names": (
        state(
            lambda s: (
                s | {HEAD: np.ones((16384, 1), np.uint8), HEAD + ".absmax": np.ones(9, np.float32)}
            )
        ),
        "quantized",
    ),
    "GPTQ by its names": (
        state(lambda s: s | {HEAD[:-6] + "qweight": np.ones((8, 64), np.int32)}),
        "quantized",
    ),
    "fp8": (info(dtype="F8_E4M3", shape=[512, 128]), "quantized|F8_E4M3"),
    "GGUF": (
        lambda d: (d / "model.safetensors").rename(d / "janus-pro-Q4_K_M.gguf"),
        "GGUF",
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_torch_model(tmp_path_factory.mktemp("valid") / "torch")


@pytest.mark.parametrize("name", TORCH)
def test_a_hostile_pytorch_directory_is_refused(model, elsewhere, tmp_path, name):
    change, words = TORCH[name]
    directory = copy_of(model, tmp_path)
    change(directory)
    refuses(use_torch, directory, words)
    assert not list(elsewhere.iterdir()) and not (tmp_path / "converted").exists()


HARMLESS = {
    **{
        f"prefix {prefix}": rename(lambda n, p=prefix: p + n)
        for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module.")
    },
    "compiled part": rename(
        lambda n: n.replace("language_model.model.", "language_model._orig_mod.model.")
    ),
    "checkpointed layers": rename(
        lambda n: n.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn.")
    ),
    "prefix of some": rename(lambda n: f"module.{n}" if "gen_" in n else n),
    "buffers": state(
        lambda s: (
            s
            | {
                "vision_model.vision_tower.embeddings.position_ids": np.arange(16)[None],
                "gen_vision_model.encoder.norm_out.num_batches_tracked": np.array(3),
                "language_model.model.rotary_emb.inv_freq": np.ones(8, np.float32),
                "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(
                    8, np.float32
                ),
                "module.vision_model.position_ids": np.arange(16, dtype=np.int32),
            }
        )
    ),
    "pickled": pickled(lambda s: None),
    "pickled parameters": pickled(lambda s: {k: torch.nn.Parameter(v) for k, v in s.items()}),
    "pickled module": pickled(lambda s: {f"module.{k}": v for k, v in s.items()}),
    "settings are pipes": both(
        special("processor_config.json", "pipe"), special("preprocessor_config.json", "pipe")
    ),
    "duplicate keys of a section": lambda d: replace(
        d / "config.json",
        (d / "config.json").read_bytes().replace(b'"ch": 32', b'"ch": 99, "ch": 32'),
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_common_tools_leave_is_read(model, tmp_path, name):
    directory = copy_of(model, tmp_path)
    HARMLESS[name](directory)
    with limits():
        found, plain = open_source(directory), open_source(model)
        found.processor()
    assert set(found.arrays) == set(plain.arrays)
    for path, array in plain.arrays.items():
        assert np.array_equal(found.arrays[path].load(), array.load()), path
