"""Google Cloud Storage by paths such as gs://bucket/run: what etils' paths do not answer.

Paths list, read and write objects through gcsfs, TensorStore writes arrays, and Orbax asks google-cloud-storage
about the bucket: all three find the same application default credentials. They come with the extra `gcs`, and
none of them is imported before a path begins with gs://.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from janus_jax.errors import RunError, UserError, one_line

PREFIX = "gs://"
PATIENCE = 15.0  # seconds, for the first answer
# Whose errors are those of a store that cannot be reached or does not allow something.
_CLIENTS = {"google", "gcsfs", "aiohttp", "requests", "urllib3", "grpc", "asyncio"}


def is_gcs(path: str | os.PathLike) -> bool:
    """Whether a path is that of an object, not of a file."""
    return os.fspath(path).startswith(PREFIX)


def absolute(path: str | os.PathLike) -> Path:
    """A file's absolute path; of gs://, etils' path, which has the methods of pathlib's but `stat` and `**`."""
    if not is_gcs(path):
        return Path(os.path.abspath(path))
    _configure()
    from etils import epath

    return epath.Path(os.fspath(path).rstrip("/"))


def bucket(path: str | os.PathLike) -> tuple[Any, str]:
    """(google-cloud-storage's bucket, name of the object in it); asks nothing."""
    name, _, key = os.fspath(path).removeprefix(PREFIX).partition("/")
    return _client().bucket(name), key


def check(path: str | os.PathLike, flag: str) -> None:
    """Asks for the bucket of a path: once, for some seconds.

    Raises:
      UserError: a package is missing; there are no credentials, no such bucket, or no right to read it; or
        nobody answers.
    """
    address = os.fspath(path)
    where = f"{flag} {address}"
    if not re.match(r"gs://[a-z0-9][-_.a-z0-9]+(/|$)", address):
        raise UserError(f"{where}: give the name of a bucket, as in gs://bucket/run")
    try:
        import gcsfs  # noqa: F401
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.retry import DEFAULT_RETRY
    except ImportError as error:
        raise UserError(f'{where}: needs gcsfs: pip install "janus-jax[gcs]"') from error

    name = address.removeprefix(PREFIX).partition("/")[0]
    try:
        _client().get_bucket(name, timeout=PATIENCE, retry=DEFAULT_RETRY.with_timeout(PATIENCE))
    except exceptions.NotFound as error:
        raise UserError(f"{where}: there is no bucket {name}; make it first") from error
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise UserError(
            f"{where}: you may not look at the bucket {name} (storage.buckets.get): give the account the "
            "roles storage.objectUser and storage.bucketViewer"
        ) from error
    except GoogleAuthError as error:
        raise UserError(
            f"{where}: no credentials ({one_line(error)[:120]}): run gcloud auth application-default login, or "
            "set GOOGLE_APPLICATION_CREDENTIALS"
        ) from error
    except Exception as error:
        if not is_of_store(error):
            raise
        reason = one_line(error).rpartition("Caused by ")[2][:160]
        raise UserError(f"{where} cannot be reached: {reason}") from error


@contextlib.contextmanager
def asking(path: str | os.PathLike) -> Iterator[None]:
    """What a store refuses inside becomes one line; that something is not there stays a `FileNotFoundError`.

    Raises:
      UserError: the store cannot be used now.
    """
    try:
        yield
    except (FileNotFoundError, UserError, RunError):
        raise
    except Exception as error:
        if not (is_gcs(path) and is_of_store(error)):
            raise
        raise UserError(
            f"cannot use {path}: {one_line(error)[:200]}; run the same command again once it can be used"
        ) from error


@functools.cache
def filesystem() -> Any:
    """gcsfs's: one for all threads, as each would ask for credentials of its own."""
    _configure()
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)


def objects(directory: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """All objects below a path, as the store describes them ("size", "crc32c", ...), by the rest of their name."""
    root = os.fspath(directory).removeprefix(PREFIX).rstrip("/")
    with asking(directory):
        found = filesystem().find(root, detail=True)
    return {
        name.removeprefix(f"{root}/"): info
        for name, info in found.items()
        if name.startswith(f"{root}/") and info["type"] == "file" and not name.endswith("/")
    }


def is_of_store(error: BaseException | None) -> bool:
    """Whether an error is that of a store which cannot be reached or does not allow something."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    # TensorStore, a ValueError, only says so in text.
    return isinstance(error, OSError) or bool(kinds & _CLIENTS) or PREFIX in str(error)


@functools.cache
def _client() -> Any:
    _configure()
    from google.cloud import storage

    return storage.Client()


@functools.cache
def _configure() -> None:
    """Once a process, before the first object is asked for."""
    import fsspec

    # Objects appear that this process did not write with gcsfs: other hosts', TensorStore's.
    for protocol in ("gs", "gcs"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    # It logs whole tracebacks of errors that it also raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
