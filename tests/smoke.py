"""The smoke config as tests want it: on one device, with some fields changed."""

from janus_jax.configs import janus_tiny

STAGES = ("stage0_siglip", "stage0_lm", "stage1", "stage2")


def tiny(arg="smoke", **fields):
    """The smoke config on one device, with fields like `stages__stage2__steps` changed."""
    config = janus_tiny.get_config(arg)
    config.mesh.fsdp = 1
    config.stage_order = STAGES
    config.eval.benchmarks = ()
    for path, value in fields.items():
        *parts, last = path.split("__")
        node = config
        for part in parts:
            node = node[part]
        node[last] = value
    return config
