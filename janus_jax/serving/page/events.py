"""How events of the page are handled; none of them is offered as an API of Gradio."""

from __future__ import annotations

from typing import Any

_ANY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Drawing and answering are queued by the engine, which batches them, and not one by one by Gradio. Values are
# checked as those of the API: Gradio ends in a traceback where a slider was emptied.
LONG = _ANY | {"concurrency_limit": None, "preprocess": False}
# Also what shows a picture: past its queue Gradio forgets where the page is mounted, and the picture is not found.
QUEUED = _ANY | {"concurrency_limit": None}
# What else takes no time goes past Gradio's queue.
QUICK = _ANY | {"queue": False}
