"""Janus-Pro, the model that understands pictures and draws them, in JAX and Flax."""

__version__ = "0.1.0"
__all__ = ["GenerationConfig", "ImageSamples", "Janus", "Preview", "__version__"]


def __getattr__(name: str):
    if name in __all__:  # imported on first use, so that `import janus_jax` stays light
        from janus_jax import inference

        return getattr(inference, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
