"""`python -m janus_jax.data`: the command is `janus_jax.cli.data`."""

from janus_jax.cli.data import command

command()
