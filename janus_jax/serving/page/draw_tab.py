"""The part of the page where pictures are drawn."""

from collections.abc import AsyncGenerator
from typing import Any

import gradio as gr

from janus_jax.serving.http.context import Context
from janus_jax.serving.page import events
from janus_jax.serving.page.draw import Drawn, DrawView, draw, number_of
from janus_jax.serving.page.files import PictureFiles
from janus_jax.serving.page.markup import cards_of, line_of
from janus_jax.serving.page.sessions import Sessions

EXAMPLES = ("three pandas", "a blue fish", "a carrot and an apple", "a cake right of a guitar")
KEPT = 60  # pictures of the gallery


class DrawTab:
    """Makes its components where it is made.

    Args:
      context: of the application.
      sessions: are told what runs.
      files: keep pictures.

    Attributes:
      kept: state: the pictures of the gallery, `Drawn`.
      chosen: state: the number of one of them, or None.
      use: the button that takes it to the conversation.
    """

    def __init__(self, context: Context, sessions: Sessions, files: PictureFiles):
        self._context, self._sessions, self._files = context, sessions, files
        self.kept, self.chosen = gr.State([]), gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                form = self._make_form()
            with gr.Column(scale=3, min_width=300):
                line = gr.HTML(line_of(""), elem_id="draw_line", padding=False)
                canvas = gr.HTML(cards_of((), 1, 1), elem_id="canvas", padding=False)
                below = gr.Row(visible=False, equal_height=True)
                with below:
                    used = gr.Textbox(
                        label="Seed used",
                        interactive=False,
                        buttons=["copy"],
                        min_width=160,
                        elem_id="used",
                    )
                    again = gr.Button(
                        "Keep this seed", size="md", min_width=150, elem_id="keep_seed"
                    )
        shelf = gr.Column(visible=False)
        small = "small-pictures" if context.card.width < 256 else None
        with shelf:
            gallery = gr.Gallery(
                label="Drawn in this session",
                height="auto",
                object_fit="contain",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="gallery",
                elem_classes=small,
            )
            self.use = gr.Button(
                "Ask about the chosen picture", interactive=False, size="sm", elem_id="use"
            )
        outputs = [line, canvas, used, below, self._start, self._stop]
        outputs += [self.kept, gallery, shelf, self.chosen, self.use]
        triggers = [self._start.click, form[0].submit]
        gr.on(triggers, self._draw, [*form, self.kept], outputs, trigger_mode="once", **events.LONG)
        self._stop.click(self._leave, **events.QUICK)
        again.click(_same, [used], [form[2]], **events.QUICK)
        gallery.select(self._choose, None, [self.chosen, self.use], **events.QUICK)

    def _make_form(self) -> list[gr.components.Component]:
        """What `_draw` gets the values of, in order."""
        card = self._context.card
        prompt = gr.Textbox(
            label="Prompt", lines=2, max_lines=6, placeholder="What to draw", elem_id="prompt"
        )
        with gr.Row():
            self._start = gr.Button("Draw", variant="primary", min_width=120, elem_id="draw")
            self._stop = gr.Button(
                "Stop", variant="stop", interactive=False, min_width=120, elem_id="draw_stop"
            )
        gr.Examples([[text] for text in EXAMPLES], [prompt], label="Try", api_visibility="private")
        with gr.Row():
            most = self._context.limits.drawn
            number = gr.Slider(1, most, 1, step=1, label="Pictures", min_width=140)
            seed = _number("Seed", "random", elem_id="seed")
        with gr.Accordion("Settings", open=False):
            guidance = gr.Slider(
                1,
                max(10.0, card.cfg_weight),
                card.cfg_weight,
                step=0.05,
                label="Guidance",
                info="How closely pictures follow the prompt; 1 is without, and twice as fast",
            )
            temperature = gr.Slider(
                0,
                max(2.0, card.temperature),
                card.temperature,
                step=0.05,
                label="Temperature",
                info="How much is left to chance; at 0 all pictures of a prompt are the same",
            )
            with gr.Row():
                top_k, top_p = _number("Top-k", "all"), _number("Top-p", "1")
        return [prompt, number, seed, guidance, temperature, top_k, top_p]

    async def _draw(
        self,
        prompt: str | None,
        number: int,
        seed: str | None,
        guidance: float | None,
        temperature: float | None,
        top_k: str | None,
        top_p: str | None,
        kept: list[Drawn],
        request: gr.Request,
    ) -> AsyncGenerator[list[Any], None]:
        form = {
            "prompt": prompt or "",
            "n": number,
            "seed": number_of(seed),
            "guidance_scale": guidance,
            "temperature": temperature,
            "top_k": number_of(top_k),
            "top_p": number_of(top_p),
        }
        with self._sessions.visit(request.session_hash or "", "draw") as visit:
            async for view in draw(form, visit, self._context, self._files):
                yield self._values(view, kept)

    def _values(self, view: DrawView, kept: list[Drawn]) -> list[Any]:
        """What goes into each of the outputs."""
        same, card = gr.skip(), self._context.card
        values = [
            line_of(view.line, view.failed, view.running),
            # A form that is refused leaves the pictures of before.
            cards_of(view.cards, card.width, card.height) if view.cards else same,
            str(view.seed) if view.seed is not None else same,
            gr.Row(visible=True) if view.seed is not None else same,
            gr.Button(interactive=not view.running),
            gr.Button(interactive=view.running),
        ]
        if view.running or not view.drawn:
            return [*values, same, same, same, same, same]
        kept = [drawn for drawn in (*view.drawn, *kept) if self._files.is_there(drawn.file)][:KEPT]
        shown = [(drawn.file, drawn.caption) for drawn in kept]
        gallery = gr.Gallery(shown, selected_index=None)
        shelf, use = gr.Column(visible=True), gr.Button(interactive=False)
        return [*values, kept, gallery, shelf, None, use]

    async def _leave(self, request: gr.Request) -> None:
        self._sessions.leave(request.session_hash or "", "draw")

    async def _choose(self, event: gr.SelectData) -> tuple[int, gr.Button]:
        return event.index, gr.Button(interactive=True)


def _number(label: str, empty: str, **options: Any) -> gr.Textbox:
    """A number that need not be given: Gradio's own component makes 0 of none."""
    return gr.Textbox(
        label=label, placeholder=empty, max_length=20, max_lines=1, min_width=120, **options
    )


async def _same(text: str) -> str:
    return text
