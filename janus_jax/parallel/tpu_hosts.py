"""How many machines a TPU slice has, asked as JAX asks it (`jax._src.clusters.cloud_tpu_cluster`)."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

# Of GKE, and of whoever sets them by hand; the last one is a file's (JAX 0.12).
VARIABLES = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH")
_PATIENCE = 5.0  # seconds


def of_variables(env: Mapping[str, str]) -> int:
    """The longest list of machines in `VARIABLES`."""
    lists = [env.get(name, "") for name in VARIABLES[:2]]
    if path := env.get(VARIABLES[2]):
        with contextlib.suppress(OSError, UnicodeDecodeError):  # JAX says so
            lists.append(Path(path).read_text(encoding="utf-8"))
    return max(len(text.split(",")) for text in lists)


def of_metadata(env: Mapping[str, str]) -> int:
    """What Compute Engine says of the slice that this machine is part of; 1 anywhere else.

    Asked only where JAX has found TPU chips: it then sets `TPU_ML_PLATFORM`, and `TPU_SKIP_MDS_QUERY` elsewhere.
    """
    if "TPU_ML_PLATFORM" not in env or "TPU_SKIP_MDS_QUERY" in env:
        return 1
    host = env.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/attributes/worker-network-endpoints",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            return len(answer.read(2**20).decode().split(","))
    except (OSError, ValueError, urllib.error.URLError):
        return 1
