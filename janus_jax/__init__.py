"""Janus-Pro, the model that understands pictures and draws them, in JAX and Flax."""

__version__ = "0.1.0"
__all__ = ["Janus", "__version__"]


def __getattr__(name: str):
    if name == "Janus":  # imported on first use, so that `import janus_jax` stays light
        from janus_jax.inference import Janus

        return Janus
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
