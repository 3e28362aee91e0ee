"""How events of the page are handled; none of them is offered as an API of Gradio."""

from __future__ import annotations

from typing import Any

_ANY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Drawing and answering are queued by the engine, which batches them, and not one by one by Gradio.
LONG = _ANY | {"concurrency_limit": None}
# What takes no time goes past Gradio's queue.
QUICK = _ANY | {"queue": False}
