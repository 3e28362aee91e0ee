"""The page itself: what is where, and what goes from one part to another."""

import html
from typing import Any

import gradio as gr

from janus_jax.serving.http.context import Context
from janus_jax.serving.page import events
from janus_jax.serving.page.chat_tab import ChatTab
from janus_jax.serving.page.draw import Drawn
from janus_jax.serving.page.draw_tab import DrawTab
from janus_jax.serving.page.files import PictureFiles
from janus_jax.serving.page.markup import state_of
from janus_jax.serving.page.sessions import Sessions

_TICK = 2.0  # seconds between two looks at whether all is compiled


def build_page(context: Context, sessions: Sessions, files: PictureFiles) -> gr.Blocks:
    """All of the page, not mounted yet.

    Args:
      context: of the application.
      sessions: are told what runs.
      files: keep pictures.
    """
    name = html.escape(context.card.name)

    async def look() -> tuple[str, gr.Timer]:
        ready = context.engine.ready
        return state_of(ready), gr.Timer(active=not ready)

    async def take_over(drawn: list[Drawn], number: int | None) -> tuple[Any, Any]:
        if number is None or not number < len(drawn) or not files.is_there(drawn[number].file):
            return gr.skip(), gr.skip()
        question = {"text": "", "files": [drawn[number].file]}
        return question, gr.Tabs(selected="chat")

    with gr.Blocks(title=f"{context.card.name} - Janus", analytics_enabled=False) as page:
        with gr.Row(elem_id="top"):
            gr.HTML(f"<h1>Janus</h1><span>{name}</span>", elem_id="title", padding=False)
            state = gr.HTML(state_of(context.engine.ready), elem_id="state", padding=False)
        with gr.Tabs() as tabs:
            with gr.Tab("Draw", id="draw"):
                drawing = DrawTab(context, sessions, files)
            with gr.Tab("Chat", id="chat"):
                chatting = ChatTab(context, sessions, files)
        drawing.use.click(
            take_over,
            [drawing.kept, drawing.chosen],
            [chatting.question, tabs],
            **events.QUEUED,
        )
        timer = gr.Timer(_TICK)
        page.load(look, None, [state, timer], **events.QUICK)
        timer.tick(look, None, [state, timer], **events.QUICK)
    return page
