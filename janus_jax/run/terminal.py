"""A chat in the terminal: text, pictures to ask about, pictures drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from janus_jax.errors import UserError
from janus_jax.processing import load_image
from janus_jax.sampling import Janus

HELP = """Type a message. Commands:
  /image FILE    the next message is about this picture; may be repeated
  /draw PROMPT   draws a picture into the output directory
  /new           forgets the conversation
  /help          this text
  /quit          ends (so does the end of the input)"""


class Terminal:
    """The loop between a person and a model.

    Args:
      janus: the model.
      out: where drawn pictures go; it is made when the first one is.
      temperature, top_p, seed: of the answers; pictures are drawn at the checkpoint's own settings.
      max_new_tokens: most tokens of an answer.
      write: shows text, without a line end of its own.
    """

    def __init__(
        self,
        janus: Janus,
        out: Path,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int = 0,
        max_new_tokens: int = 512,
        write: Callable[[str], None] = lambda text: print(text, end="", flush=True),
    ):
        self._janus, self._out, self._seed = janus, out, seed
        self._new = lambda: janus.conversation(temperature, top_p, seed)
        self._max_new_tokens, self._write = max_new_tokens, write
        self._conversation = self._new()
        self._images: list[Image.Image] = []
        self._drawn = 0

    def run(self, lines: Iterator[str]) -> None:
        """Goes on until the lines end or one is /quit; what a person typed wrong ends nothing."""
        self._write(f"{HELP}\n")
        for line in lines:
            text = line.strip()
            if text == "/quit":
                return
            try:
                self._handle(text)
            except UserError as error:
                self._write(f"{error}\n")

    def _handle(self, text: str) -> None:
        command, _, rest = text.partition(" ")
        rest = rest.strip()
        if not text:
            return
        if command == "/image":
            self._images.append(load_image(rest))
            self._write(f"{rest}: now ask about it\n")
        elif command == "/draw":
            self._draw(rest)
        elif command == "/new":
            self._conversation, self._images = self._new(), []
            self._write("a new conversation\n")
        elif command == "/help":
            self._write(f"{HELP}\n")
        elif command.startswith("/"):
            raise UserError(f"no command {command}; /help shows them")
        else:
            self._answer(text)

    def _warn(self, text: str) -> None:
        unknown = self._janus.processor.tokenizer.unknown_words(text)
        if unknown:
            self._write(f"(the model does not know: {', '.join(unknown)})\n")

    def _answer(self, text: str) -> None:
        self._warn(text)
        pieces = self._conversation.ask(text, self._images, self._max_new_tokens)
        self._images = []
        try:
            for piece in pieces:
                self._write(piece)
        except KeyboardInterrupt:
            pieces.close()
            self._write(" ...")
        self._write("\n")

    def _draw(self, prompt: str) -> None:
        self._warn(prompt)
        picture = self._janus.generate(prompt, seed=self._seed + self._drawn)[0]
        self._out.mkdir(parents=True, exist_ok=True)
        path = self._out / f"chat_{self._drawn:03d}.png"
        temporary = path.with_suffix(".tmp")
        picture.save(temporary, format="PNG")
        temporary.replace(path)
        self._drawn += 1
        self._write(f"{path}\n")
