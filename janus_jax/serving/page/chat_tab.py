"""The part of the page where the model answers."""

import contextlib
import html
from collections.abc import AsyncGenerator
from typing import Any

import gradio as gr

from janus_jax.serving.http.context import Context
from janus_jax.serving.http.pictures import FORMATS
from janus_jax.serving.jobs import ChatJob
from janus_jax.serving.page import events
from janus_jax.serving.page.chat import ChatView, Conversation, ask, ask_again
from janus_jax.serving.page.files import PictureFiles
from janus_jax.serving.page.markup import line_of
from janus_jax.serving.page.sessions import Sessions, Visit

_EMPTY = {"text": "", "files": []}
_ENDINGS = [f".{name.lower()}" for name in FORMATS] + [".jpg"]


class ChatTab:
    """Makes its components where it is made.

    Args:
      context: of the application.
      sessions: are told what runs.
      files: keep pictures.

    Attributes:
      question: the component for text and pictures.
    """

    def __init__(self, context: Context, sessions: Sessions, files: PictureFiles):
        self._context, self._sessions, self._files = context, sessions, files
        turns = gr.State(())
        small = "small-pictures" if context.card.input_size < 256 else None
        chat = gr.Chatbot(
            label="Conversation",
            show_label=False,
            height="52vh",
            min_height=300,
            render_markdown=False,
            buttons=[],  # to copy would copy what is escaped
            placeholder="Add pictures with the clip, drop or paste them, and ask about them",
            elem_id="chat",
            elem_classes=small,
        )
        line = gr.HTML(line_of(""), elem_id="chat_line", padding=False)
        self.question = gr.MultimodalTextbox(
            label="Question",
            show_label=False,
            placeholder="Ask about pictures, or anything",
            file_count="multiple",
            file_types=_ENDINGS,
            sources=["upload"],
            elem_id="question",
        )
        with gr.Row():
            stop = gr.Button(
                "Stop",
                variant="stop",
                interactive=False,
                size="md",
                min_width=90,
                elem_id="chat_stop",
            )
            retry = gr.Button(
                "Ask again", interactive=False, size="md", min_width=90, elem_id="retry"
            )
            clear = gr.Button("Clear", size="md", min_width=90, elem_id="clear")
        with gr.Accordion("Settings", open=False):
            temperature = gr.Slider(
                0,
                2,
                ChatJob.temperature,
                step=0.05,
                label="Temperature",
                info="At 0 the same question has the same answer",
            )
            most = context.limits.tokens
            tokens = gr.Slider(
                1, most, min(ChatJob.max_tokens, most), step=1, label="Longest answer, in tokens"
            )
        settings = [temperature, tokens]
        outputs = [chat, line, self.question, turns, stop, retry, clear]
        self.question.submit(
            self._ask,
            [turns, self.question, *settings],
            outputs,
            trigger_mode="once",
            **events.LONG,
        )
        retry.click(
            self._ask_again, [turns, *settings], outputs, trigger_mode="once", **events.LONG
        )
        stop.click(self._leave, **events.QUICK)
        # The chat has a button of its own that would clear what is seen alone.
        gr.on([clear.click, chat.clear], self._clear, None, outputs, **events.QUICK)

    async def _ask(
        self,
        turns: Conversation,
        question: dict[str, Any] | None,
        temperature: float,
        tokens: int,
        request: gr.Request,
    ) -> AsyncGenerator[list[Any], None]:
        question = {**_EMPTY, **(question or {})}
        text, paths = question["text"] or "", [file["path"] for file in question["files"] or ()]
        settings, taken = _settings(temperature, tokens), False
        with self._visit(request) as visit:
            views = ask(turns, text, paths, settings, visit, self._context, self._files)
            async for view in views:
                box = gr.skip()
                if view.refused and taken:
                    box = {"text": text, "files": [p for p in paths if self._files.is_there(p)]}
                elif not view.refused and not taken:
                    box, taken = _EMPTY, True
                yield self._values(view, box)

    async def _ask_again(
        self, turns: Conversation, temperature: float, tokens: int, request: gr.Request
    ) -> AsyncGenerator[list[Any], None]:
        settings = _settings(temperature, tokens)
        with self._visit(request) as visit:
            async for view in ask_again(turns, settings, visit, self._context):
                yield self._values(view, gr.skip())

    def _visit(self, request: gr.Request) -> contextlib.AbstractContextManager[Visit]:
        """One at a time: each ends with the conversation to go on with."""
        session = request.session_hash or ""
        if self._sessions.runs(session, "chat"):
            raise gr.Error("wait for the answer, or stop it", print_exception=False)
        return self._sessions.visit(session, "chat")

    def _values(self, view: ChatView, box: Any) -> list[Any]:
        """What goes into each of the outputs."""
        return [
            self._messages(view.turns, view.running),
            line_of(view.line, view.failed, view.running),
            box,
            # While it runs the conversation is that of before: if the page goes, nothing is half.
            gr.skip() if view.running else view.turns,
            gr.Button(interactive=view.running),
            gr.Button(interactive=bool(view.turns) and not view.running),
            gr.Button(interactive=not view.running),
        ]

    def _messages(self, turns: Conversation, running: bool) -> list[dict[str, Any]]:
        """The conversation as Gradio shows it."""
        messages = []
        for number, turn in enumerate(turns):
            there = [p.file for p in turn.pictures if self._files.is_there(p.file)]
            content = [{"path": path} for path in there]
            content.append(_text(turn.question))
            messages.append({"role": "user", "content": content})
            answer = turn.answer
            if not answer:
                answer = "..." if running and number == len(turns) - 1 else "(no answer)"
            messages.append({"role": "assistant", "content": [_text(answer)]})
        return messages

    async def _leave(self, request: gr.Request) -> None:
        self._sessions.leave(request.session_hash or "", "chat")

    async def _clear(self) -> list[Any]:
        same = gr.skip()
        return [[], line_of(""), same, (), same, gr.Button(interactive=False), same]


def _text(text: str) -> dict[str, str]:
    """A text that is shown as it is. Gradio lets HTML through, with pictures of other servers."""
    return {"type": "text", "text": html.escape(text, quote=False)}


def _settings(temperature: float | None, tokens: int | None) -> dict[str, Any]:
    """Fields of a request."""
    return {"temperature": temperature, "max_tokens": tokens}
