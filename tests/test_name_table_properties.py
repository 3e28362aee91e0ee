"""The name table for any architecture: each parameter has its own torch names, and each leads back."""

import dataclasses

import pytest
from converting import TABLES

from janus_jax.config import DecoderConfig, JanusConfig, SigLIPConfig, VQConfig
from janus_jax.interop.conversion.convert import expected_shapes, make_plan

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

layers = st.integers(1, 12)
architectures = st.builds(
    lambda siglip, decoder, levels, blocks, heads: JanusConfig(
        "any",
        SigLIPConfig(image_size=16, patch_size=8, width=8, layers=siglip, heads=2),
        VQConfig(16, 20, 4, 8, 4, levels, blocks, norm_groups=2),
        DecoderConfig(24, 8, 16, decoder, heads=heads, kv_heads=1, head_dim=4),
        scan_layers=False,
    ),
    layers,
    layers,
    st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple),
    st.integers(1, 3),
    st.sampled_from([1, 3]),
)


# Few examples: the shapes of an architecture take a tracing of the model, half a second.
@settings(max_examples=12, deadline=None, derandomize=True)
@given(architectures)
def test_every_parameter_has_torch_names_that_lead_back(config):
    shapes = expected_shapes(config)
    for table in TABLES.values():
        names = {}
        for path, shape in shapes.items():
            slots = table.to_torch(path)
            assert [s.part for s in slots] == [(k, len(slots)) for k in range(len(slots))]
            for slot in slots:
                assert slot.name not in names
                assert table.to_ours(slot.name) == dataclasses.replace(slot, name=path)
                names[slot.name] = slot.torch_shape(shape)
        plan = make_plan(names, config, table)
        assert not plan.problems and set(plan.sources) == set(shapes)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(TABLES)), st.integers(0, 10**6))
def test_layers_of_any_number_keep_it(key, layer):
    table = TABLES[key]
    for path in (f"decoder/layers_{layer}/attn/q_proj/kernel", f"siglip/blocks_{layer}/fc1/bias"):
        (slot,) = table.to_torch(path)
        assert f".{layer}." in slot.name
        assert table.to_ours(slot.name).name == path
        for wrong in (f"0{layer}", f"{layer}x", "-1"):  # another spelling of a number is no layer
            assert table.to_ours(slot.name.replace(f".{layer}.", f".{wrong}.")) is None
