"""The JSON files of PyTorch directories, damaged on purpose: each is refused in one line, quickly and in little
memory.

Every variant is a valid tiny directory with one change; it goes through what `convert_torch_weights.py` and
`Janus.load` do with it.
"""

import json

import pytest
from hostile import (
    BIG,
    CODES,
    DEEP,
    DIGITS,
    ESCAPE,
    LLAMA,
    LONG,
    PLACES,
    VISION,
    Raw,
    both,
    copy_of,
    edit,
    make_torch_model,
    put,
    refuses,
    replace,
    special,
    tokens,
    use_torch,
    vocab,
)

# What is wrong -> (change, words of the message).
TORCH = {
    # config.json: text
    "deep": (put("config.json", DEEP), "config.json"),
    "deep in an object": (put("config.json", '{"a":' * LONG), "config.json"),
    "deep value": (edit(*LLAMA, "hidden_act", value=Raw("[" * 900 + "]" * 900)), "hidden_act"),
    "digits": (edit(*LLAMA, "vocab_size", value=Raw(DIGITS)), "config.json"),
    "negative digits": (edit(*LLAMA, "vocab_size", value=Raw("-" + DIGITS)), "config.json"),
    "many digits": (edit(*LLAMA, "vocab_size", value=10**4000), "config.json"),
    "float of digits": (edit(*LLAMA, "rope_theta", value=10**400), "config.json"),
    "exponent": (edit(*LLAMA, "rope_theta", value=Raw("1e999")), "rope_theta"),
    "nan": (edit(*LLAMA, "rms_norm_eps", value=Raw("NaN")), "norm_eps"),
    "infinite size": (edit(*LLAMA, "hidden_size", value=Raw("Infinity")), "hidden_size"),
    "empty": (put("config.json", ""), "config.json"),
    "cut": (put("config.json", '{"model_type": "multi_mod'), "config.json"),
    "list": (put("config.json", "[]"), "config.json"),
    "string": (put("config.json", '"multi_modality"'), "config.json"),
    "null": (put("config.json", "null"), "config.json"),
    "zeros": (put("config.json", b"\0" * 1000), "config.json"),
    "utf-16": (put("config.json", "{}".encode("utf-16")), "config.json"),
    "surrogate": (edit("config.json", "model_type", value="\ud800"), "model_type"),
    "escapes in model_type": (edit("config.json", "model_type", value=ESCAPE), "model_type"),
    "long model_type": (edit("config.json", "model_type", value="x" * LONG), "model_type"),
    "long key": (edit(*VISION, "image_size", value={"x" * LONG: 1}), "image_size"),
    # config.json: numbers
    "layers": (edit(*LLAMA, "num_hidden_layers", value=BIG), "layers"),
    "more layers than tensors": (edit(*LLAMA, "num_hidden_layers", value=900), "tensors"),
    "vision layers": (edit(*VISION, "layers", value=BIG), "layers"),
    "more vision layers than tensors": (edit(*VISION, "layers", value=900), "tensors"),
    "res blocks": (edit(*CODES, "num_res_blocks", value=BIG), "num_res_blocks"),
    "more res blocks than tensors": (edit(*CODES, "num_res_blocks", value=40), "tensors"),
    "levels": (edit(*CODES, "ch_mult", value=[1] * LONG), "ch_mult"),
    "multiplier": (edit(*CODES, "ch_mult", value=[1, 1, 10**15]), "ch_mult"),
    "vocabulary": (edit(*LLAMA, "vocab_size", value=2**60), "vocab_size"),
    "width": (edit(*LLAMA, "hidden_size", value=2**60), "width"),
    "feed-forward": (edit(*LLAMA, "intermediate_size", value=2**60), "ffw"),
    "heads": (edit(*LLAMA, "num_attention_heads", value=2**60), "head"),
    "head size": (edit(*LLAMA, "head_dim", value=2**60), "head_dim"),
    "positions": (edit(*LLAMA, "max_position_embeddings", value=2**60), "max_position"),
    "image size": (edit(*VISION, "image_size", value=2**60), "image_size"),
    "picture size": (edit(*CODES, "image_size", value=2**20), "image_size"),
    "codebook": (edit(*CODES, "image_token_size", value=2**60), "codebook_size"),
    "code width": (edit(*CODES, "n_embed", value=2**60), "codebook_dim"),
    "channels": (edit(*CODES, "ch", value=2**60), "ch"),
    "no heads": (edit(*LLAMA, "num_attention_heads", value=0), "heads"),
    "negative layers": (edit(*LLAMA, "num_hidden_layers", value=-1), "layers"),
    "negative vision layers": (edit(*VISION, "select_layer", value=-(10**9)), "layers"),
    "no patch": (edit(*VISION, "patch_size", value=0), "patch_size"),
    "true layers": (edit(*LLAMA, "num_hidden_layers", value=True), "layers"),
    "text for a number": (edit(*LLAMA, "hidden_size", value="64"), "hidden_size"),
    "number for a section": (edit(*VISION, value=5), "params"),
    "list for a section": (edit("config.json", "language_config", value=[]), "language_config"),
    "text for a list": (edit(*CODES, "ch_mult", value="11"), "ch_mult"),
    "number for a list": (edit(*CODES, "ch_mult", value=3), "ch_mult"),
    "empty list": (edit(*CODES, "ch_mult", value=[]), "ch_mult"),
    "lists in a list": (edit(*CODES, "ch_mult", value=[[1]]), "ch_mult"),
    "escapes in the head": (
        edit("config.json", "gen_head_config", "params", "n_embed", value=ESCAPE),
        "n_embed",
    ),
    "kv heads": (edit(*LLAMA, "num_key_value_heads", value="x" * LONG), "kv_heads"),
    "rope": (edit(*LLAMA, "rope_parameters", value=[ESCAPE] * LONG), "rope_parameters"),
    # files of the wrong kind
    **{f"config.json: {kind}": (special("config.json", kind), "config.json") for kind in PLACES},
    "config.json: sparse": (special("config.json", "sparse"), "config.json"),
    **{f"tokenizer: {kind}": (special("tokenizer.json", kind), "tokenizer") for kind in PLACES},
    "tokenizer: sparse": (special("tokenizer.json", "sparse"), "tokenizer"),
    **{
        f"weights: {kind}": (special("model.safetensors", kind), "model.safetensors")
        for kind in (*PLACES, "sparse")
    },
    **{
        f"bin: {kind}": (
            both(lambda d: (d / "model.safetensors").unlink(), special("pytorch_model.bin", kind)),
            "pytorch_model.bin",
        )
        for kind in ("pipe", "device", "directory", "sparse")
    },
    **{
        f"index: {kind}": (special("model.safetensors.index.json", kind), "index.json")
        for kind in ("pipe", "device", "directory", "sparse")
    },
    # tokenizer.json
    "tokenizer: empty": (put("tokenizer.json", ""), "tokenizer"),
    "tokenizer: {}": (put("tokenizer.json", "{}"), "tokenizer"),
    "tokenizer: list": (put("tokenizer.json", "[]"), "tokenizer"),
    "tokenizer: deep": (put("tokenizer.json", DEEP), "tokenizer"),
    "tokenizer: digits": (put("tokenizer.json", '{"version":' + DIGITS + "}"), "tokenizer"),
    "tokenizer: latin-1": (put("tokenizer.json", b'{"a": "\xe9"}'), "tokenizer"),
    "tokenizer: id 2^31": (vocab(big=2**31), "id"),
    "tokenizer: id 2^32-1": (vocab(big=2**32 - 1), "id"),
    "tokenizer: id 2^64": (vocab(big=2**64), "tokenizer"),
    "tokenizer: id beyond the table": (vocab(big=600), "rows|gaps"),
    "tokenizer: gaps": (vocab(big=10**6), "id"),
    "tokenizer: negative id": (vocab(big=-1), "tokenizer"),
    "tokenizer: half an id": (vocab(big=1.5), "tokenizer"),
    "tokenizer: text for an id": (vocab(big="1"), "tokenizer"),
    "tokenizer: no words": (
        tokens(lambda t: t["model"].update(vocab={}) or t | {"added_tokens": []}),
        "vocabulary",
    ),
    "tokenizer: empty BPE": (
        tokens(
            lambda t: t | {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
        ),
        "vocabulary",
    ),
    "tokenizer: no unknown": (tokens(lambda t: t["model"].update(unk_token="nope")), "nope|UNK"),
    "tokenizer: merges": (
        tokens(lambda t: t["model"].update(type="BPE", merges=["a b"], unk_token=None)),
        "tokenizer",
    ),
    "tokenizer: unigram": (
        tokens(lambda t: t | {"model": {"type": "Unigram", "vocab": [], "unk_id": 7}}),
        "tokenizer",
    ),
    "tokenizer: precompiled": (
        tokens(
            lambda t: t | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
        ),
        "tokenizer",
    ),
    "tokenizer: bad regex": (
        tokens(
            lambda t: (
                t
                | {
                    "pre_tokenizer": {
                        "type": "Split",
                        "pattern": {"Regex": "(" * 50},
                        "behavior": "Isolated",
                        "invert": False,
                    }
                }
            )
        ),
        "tokenizer",
    ),
    "tokenizer: escapes in a type": (tokens(lambda t: t["model"].update(type=ESCAPE)), "tokenizer"),
    "tokenizer: long type": (
        tokens(lambda t: t | {"normalizer": {"type": "x" * LONG}}),
        "tokenizer",
    ),
    "tokenizer: no first token": (
        lambda d: replace(
            d / "tokenizer.json",
            (d / "tokenizer.json").read_bytes().replace("<｜begin▁of".encode(), b"<other"),
        ),
        "token",
    ),
    # processor files
    "template of escapes": (
        put("processor_config.json", json.dumps({"sft_format": ESCAPE})),
        "sft_format",
    ),
    "template of letters": (
        put("processor_config.json", json.dumps({"sft_format": "x" * LONG})),
        "sft_format",
    ),
    "template of lists": (put("processor_config.json", '{"sft_format": [1]}'), "processor|sft"),
    "tokens of escapes": (
        put("processor_config.json", json.dumps({"num_image_tokens": ESCAPE})),
        "num_image_tokens",
    ),
    "half a character in the system prompt": (
        put("processor_config.json", r'{"system_prompt": "a \ud800 b"}'),
        "system_prompt",
    ),
    "temperature that cannot be loaded": (
        put("processor_config.json", '{"temperature": 1e7}'),
        "temperature",
    ),
    "deep processor": (put("processor_config.json", DEEP), "processor_config"),
    "list of a processor": (put("processor_config.json", "[]"), "processor_config"),
    "picture size of escapes": (
        put("preprocessor_config.json", json.dumps({"image_size": ESCAPE})),
        "image_size",
    ),
    "mean of digits": (
        put("preprocessor_config.json", '{"image_mean": [' + DIGITS + "]}"),
        "preprocessor",
    ),
    "mean of objects": (put("preprocessor_config.json", '{"image_mean": {"a": 1}}'), "image_mean"),
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
