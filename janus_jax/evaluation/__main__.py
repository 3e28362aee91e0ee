"""`python -m janus_jax.evaluation`: the command is `janus_jax.cli.evaluate`."""

from janus_jax.cli.evaluate import command

command()
