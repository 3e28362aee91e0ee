"""Makes the page part of an application. Gradio is imported when that is done, and not before."""

from __future__ import annotations

import importlib.util
import os

from starlette.applications import Starlette

from janus_jax.serving.http.context import Context
from janus_jax.serving.http.security import PAGE
from janus_jax.serving.page.files import PictureFiles, of_process
from janus_jax.serving.page.guard import Guard
from janus_jax.serving.page.markup import CSS
from janus_jax.serving.page.sessions import Sessions

SESSIONS = 1000  # whose conversations and galleries are kept; the oldest are forgotten
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "Consolas", "monospace"]


def is_installed() -> bool:
    """Whether there is what the page needs."""
    return importlib.util.find_spec("gradio") is not None


def mount_page(app: Starlette, context: Context) -> Guard:
    """Adds the page at `PAGE` to an application, before that starts.

    Returns:
      what stands before the page.
    """
    sessions, files = Sessions(), of_process()
    _prepare_environment(files)
    import gradio as gr

    from janus_jax.serving.page.layout import build_page

    page = build_page(context, sessions, files)
    page.queue(default_concurrency_limit=None, api_open=False)
    # Gradio's queue has as many places as there are threads, 40; who has to wait is for the engine to say.
    page._queue.max_thread_count = SESSIONS
    # It looks for work a thousand times a second, which is 3% of a core in a server that does nothing.
    page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = 0.02, 1.0
    page.state_session_capacity = SESSIONS
    # Set by launch() alone, and without it Gradio takes any path that a request names.
    page.has_launched = True
    gr.mount_gradio_app(
        app,
        page,
        PAGE,
        allowed_paths=[],
        max_file_size=context.limits.picture_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        footer_links=[],
        show_error=False,
        theme=gr.themes.Default(font=_FONTS, font_mono=_MONO),
        css=CSS,
    )
    (mount,) = [route for route in app.routes if getattr(route, "path", None) == PAGE]
    guard = Guard(mount.app, sessions, files)
    mount.app = guard
    return guard


def _prepare_environment(files: PictureFiles) -> None:
    """What Gradio reads of it. Nothing is sent anywhere, and all files are where they are bounded."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(files.directory)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(files.directory / "examples")
    # Else every event is put into a table for a page about the page, which is closed.
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**9)
