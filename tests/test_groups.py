"""Trainable sets by patterns of paths: what matches, and that split and merge are inverse."""

import fnmatch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.errors import UserError
from janus_jax.param_groups import merge_params, split_params

TREE = {
    "decoder": {
        "layers_1": {"attn": {"kernel": 1, "bias": 2}, "mlp": {"kernel": 3}},
        "layers_10": {"attn": {"kernel": 4, "lora_a": 5}},
        "norm": {"scale": 6},
    },
    "siglip": {"blocks": {"qkv": {"kernel": 7, "bias": 8}}, "pos_embed": 9},
    "vq": {"embedding": 10},
}


def leaves(tree, path=""):
    """Path -> value, of leaves and of empty dicts."""
    found = {}
    for key, value in tree.items():
        here = f"{path}/{key}" if path else key
        found |= leaves(value, here) if isinstance(value, dict) and value else {here: value}
    return found


@pytest.mark.parametrize(
    ("patterns", "values"),
    [
        (("decoder",), {1, 2, 3, 4, 5, 6}),
        (("decoder/**",), {1, 2, 3, 4, 5, 6}),
        (("decoder/*",), {1, 2, 3, 4, 5, 6}),
        (("siglip/blocks/**/kernel",), {7}),
        (("siglip/**/pos_embed",), {9}),  # ** may stand for nothing
        (("**/kernel",), {1, 3, 4, 7}),
        (("decoder/layers_*/attn",), {1, 2, 4, 5}),
        (("decoder/layers_?/attn",), {1, 2}),
        (("decoder/layers_[!1]*",), set()),
        (("**/lora_*",), {5}),
        (("decoder/layers_10", "vq", "**/bias"), {2, 4, 5, 8, 10}),
        (("**",), set(range(1, 11))),
    ],
)
def test_what_a_pattern_takes(patterns, values):
    if not values:
        with pytest.raises(UserError, match="no parameter matches"):
            split_params(TREE, patterns)
        return
    chosen, rest = split_params(TREE, patterns)
    assert set(leaves(chosen).values()) == values
    assert set(leaves(rest).values()) == set(range(1, 11)) - values
    assert merge_params(rest, chosen) == merge_params(chosen, rest) == TREE


def test_whole_groups_are_the_objects_of_before():
    """Optimizer states and checkpoints of existing runs have these trees."""
    chosen, rest = split_params(TREE, ("decoder", "vq/**"))
    assert chosen.keys() == {"decoder", "vq"} and rest.keys() == {"siglip"}
    assert chosen["decoder"] is TREE["decoder"] and rest["siglip"] is TREE["siglip"]
    assert merge_params(rest, chosen)["decoder"] is TREE["decoder"]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("decodr", "decoder"),
        ("siglip/block", "siglip/blocks"),
        ("decoder/layers_1/atn/kernel", "decoder/layers_1/attn/kernel"),
        ("vq/embeding", "vq/embedding"),
    ],
)
def test_a_pattern_without_a_match_is_a_user_error_with_the_nearest_path(pattern, meant):
    with pytest.raises(UserError, match=f"'{pattern}'. Did you mean '{meant}'"):
        split_params(TREE, ("vq", pattern))


def test_trees_that_overlap_are_not_merged():
    with pytest.raises(ValueError, match="kernel"):
        merge_params({"a": {"kernel": 1}}, {"a": {"kernel": 2}})
    with pytest.raises(ValueError, match="'a'"):
        merge_params({"a": {"kernel": 1}}, {"a": 2})


KEYS = st.sampled_from("decoder siglip layers_0 layers_1 kernel bias lora_a".split())
TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
).filter(lambda tree: isinstance(tree, dict) and tree)
PATTERNS = st.lists(
    st.lists(KEYS | st.sampled_from(["*", "**", "layers_*"]), min_size=1, max_size=4).map("/".join),
    min_size=1,
    max_size=3,
)


def naive_match(path, pattern):
    """Of a leaf, by the text of every way to cut it and of every length that ** may have."""
    parts = pattern.split("/")
    for end in range(1, len(path) + 1):
        expanded = [[]]
        for part in parts:
            options = [["*"] * n for n in range(end + 1)] if part == "**" else [[part]]
            expanded = [head + tail for head in expanded for tail in options]
        for candidate in expanded:
            if len(candidate) == end and all(map(fnmatch.fnmatchcase, path[:end], candidate)):
                return True
    return False


@settings(max_examples=150, deadline=None)
@given(TREES, PATTERNS)
def test_merge_undoes_split_for_any_tree_and_patterns(tree, patterns):
    try:
        chosen, rest = split_params(tree, patterns)
    except UserError:
        hit = [p for p in patterns if any(naive_match(k.split("/"), p) for k in leaves(tree))]
        assert len(hit) < len(patterns)
        return
    assert merge_params(rest, chosen) == merge_params(chosen, rest) == tree
    taken, left = leaves(chosen), leaves(rest)
    assert not taken.keys() & left.keys()
    for path in leaves(tree):
        assert (path in taken) is any(naive_match(path.split("/"), p) for p in patterns), path
