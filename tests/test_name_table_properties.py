"""The name table for any architecture: each parameter has its own torch names, and each leads back."""

import dataclasses

import pytest
from converting import SMALL, TABLES
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from janus_jax.config import DecoderConfig, JanusConfig, SigLIPConfig, VQConfig
from janus_jax.interop.conversion.convert import expected_shapes, make_plan

pytestmark = pytest.mark.heavy

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


# Few examples, and a failing one as it was found: the shapes of an architecture take half a second.
@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(architectures)
def test_every_parameter_has_torch_names_that_lead_back(config):
    shapes = expected_shapes(config)
    for table in TABLES.values():
        names, wanted = {}, {}
        for path, shape in shapes.items():
            slots = table.to_torch(path)
            assert [s.part for s in slots] == [(k, len(slots)) for k in range(len(slots))]
            assert not any(slot.name in names for slot in slots)
            names |= {slot.name: slot.torch_shape(shape) for slot in slots}
            wanted[path] = [(s.name, dataclasses.replace(s, name=path)) for s in slots]
        plan = make_plan(names, config, table)
        assert not plan.problems
        assert plan.sources == wanted


FIXED = JanusConfig.from_dict(SMALL.to_dict() | {"scan_layers": False})


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(TABLES)), st.integers(0, 10**6))
def test_layers_of_any_number_keep_it(key, layer):
    table = TABLES[key]
    for path, layers in (
        ("decoder/layers_{}/attn/q_proj/kernel", FIXED.decoder.layers),
        ("siglip/blocks_{}/fc1/bias", FIXED.siglip.layers),
    ):
        (slot,) = table.to_torch(path.format(layer))
        assert slot.name.count(f".{layer}.") == 1
        first = expected_shapes(FIXED)[path.format(0)]
        spellings = [slot.name.replace(f".{layer}.", f".{s}.") for s in (f"0{layer}", f"{layer}x")]
        found = dict.fromkeys([slot.name, *spellings], slot.torch_shape(first))
        plan = make_plan(found, FIXED, table)
        unexpected = spellings if layer < layers else [slot.name, *spellings]
        assert plan.problems["unexpected"] == unexpected
        assert path.format(layer) in plan.sources or layer >= layers
