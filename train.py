"""Trains a Janus: every stage of a config, in order: `python train.py --help`."""

from janus_jax.cli.train import command

if __name__ == "__main__":
    command()
