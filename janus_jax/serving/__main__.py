"""`python -m janus_jax.serving`: the command is `janus_jax.cli.serve`."""

from janus_jax.cli.serve import command

command()
