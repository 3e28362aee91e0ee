"""Architectures and processors: PyTorch's config files <-> `janus_jax.config`."""
