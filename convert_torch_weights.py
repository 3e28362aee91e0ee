"""Converts Janus checkpoints between this project and PyTorch: `python convert_torch_weights.py --help`."""

from janus_jax.cli.convert import command

if __name__ == "__main__":
    command()
