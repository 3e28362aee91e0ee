"""Whether a model computes the same here as in PyTorch: recorded there, computed again and compared here."""

from janus_jax.interop.parity.compare import (
    Row,
    as_json,
    check_parity,
    read_recording,
)
from janus_jax.interop.parity.record import write_recording

__all__ = ["Row", "as_json", "check_parity", "read_recording", "write_recording"]
