"""A bucket on this machine: gcp-storage-emulator, with what it lacks and a run relies on.

It ignores preconditions, on which the lock of a run and TensorStore's manifests rest; here a write or delete with
`ifGenerationMatch` is refused as the real service does it (it answers one request after the other, which makes
that atomic), and who reads is told the generation. Nor does it know `moveTo`, by which gcsfs renames.
"""

import contextlib
import logging
import socket
from http import HTTPStatus

import pytest
from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects


def _on_condition(handler):
    def handle(request, response, storage, *args, **kwargs):
        wanted = request.query.get("ifGenerationMatch")
        name = request.params.get("object_id") or request.query.get("name", [None])[0]
        if name is None and isinstance(request.data, dict):
            name = request.data.get("meta", request.data).get("name")
        if wanted and name:
            try:
                found = storage.get_file_obj(request.params["bucket_name"], name)["generation"]
            except NotFound:
                found = "0"
            if found != wanted[0]:
                response.status = HTTPStatus.PRECONDITION_FAILED
                response.json({"error": {"code": 412, "message": "conditionNotMet"}})
                return
        handler(request, response, storage, *args, **kwargs)

    return handle


def _with_generation(handler):
    def handle(request, response, storage, *args, **kwargs):
        with contextlib.suppress(NotFound):
            found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = found["generation"]
        handler(request, response, storage, *args, **kwargs)

    return handle


for _, handlers in server.HANDLERS:
    for method, handler in list(handlers.items()):
        if handler in (objects.insert, objects.delete):
            handlers[method] = _on_condition(handler)
        if handler in (objects.get, objects.download):
            handlers[method] = _with_generation(handler)


def _move(request, response, storage, *args, **kwargs):
    name, new, bucket = (request.params[k] for k in ("object_id", "new_id", "bucket_name"))
    try:
        response.json(objects._copy(request.base_url, storage, bucket, name, bucket, new))
        storage.delete_file(bucket, name)
    except NotFound:
        response.status = HTTPStatus.NOT_FOUND


_MOVE = r"^(?:/storage/v1)?/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>[^/]+)/moveTo/o/(?P<new_id>[^/]+)$"
server.HANDLERS = ((_MOVE, {"POST": _move}), *server.HANDLERS)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Bucket:
    """A bucket of a running emulator."""

    def __init__(self, storage, port: int, name: str):
        self._storage, self._name = storage, name
        self.url = f"gs://{name}"
        self._server = f"http://127.0.0.1:{port}"
        self.env = {
            "STORAGE_EMULATOR_HOST": self._server,
            "TENSORSTORE_GCS_HTTP_URL": self._server,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # of TensorStore
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask the real service
            "NO_GCE_CHECK": "true",
        }

    def names(self, prefix: str = "") -> list[str]:
        found, _ = self._storage.get_file_list(self._name, prefix or None, None)
        return sorted(item["name"] for item in found)

    def read(self, name: str) -> bytes:
        return self._storage.get_file(self._name, name)

    def write(self, name: str, content: bytes) -> None:
        obj = objects._make_object_resource(self._server, self._name, name, None, str(len(content)))
        self._storage.create_file(self._name, name, content, objects._checksums(content, obj))

    def remove(self, name: str) -> None:
        self._storage.delete_file(self._name, name)


@contextlib.contextmanager
def serve(port: int = 0, bucket: str = "bucket"):
    """Yields a `Bucket`; its `env` sends clients in other processes there."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    port = port or free_port()
    running = server.create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket)
    with running:
        running._api._httpd.handle_error = lambda *_: (
            None
        )  # a client that asks twice takes one answer
        yield Bucket(running._storage, port, bucket)


@contextlib.contextmanager
def for_this_process():
    """Yields a `Bucket` that this process and those that it starts use."""
    from etils.epath import backend
    from orbax.checkpoint.utils import gcs_utils

    from janus_jax import gcs

    caches = (
        gcs.filesystem,
        gcs._client,
        gcs_utils.get_bucket,
        backend._FileSystemSpecBackend._get_filesystem,
    )
    with serve() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.env.items():
            patch.setenv(name, value)
        yield found
        gcs.filesystem().clear_instance_cache()
        for cache in caches:
            cache.cache_clear()
