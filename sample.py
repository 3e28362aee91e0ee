"""Draws pictures from prompts, or answers questions about a picture: `python sample.py --help`."""

from janus_jax.cli.sample import command

if __name__ == "__main__":
    command()
