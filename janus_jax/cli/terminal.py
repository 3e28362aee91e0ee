"""A chat in the terminal: text, pictures to ask about, pictures drawn."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from janus_jax.console import printable
from janus_jax.errors import UserError, about_place, one_line
from janus_jax.inference import Janus
from janus_jax.inference.logits import make_sampling_params
from janus_jax.places import check_directory, make_directory
from janus_jax.processing import GenerationConfig, load_image, save_image

HELP = """Type a message. Commands:
  /image FILE    the next message is about this picture; may be repeated (~, quotes and "\\ " work)
  /draw PROMPT   draws a picture into the output directory
  /new           forgets the conversation
  /help          this text
  /quit          ends (so does the end of the input)"""


class Terminal:
    """The loop between a person and a model.

    Args:
      janus: the model.
      out: where drawn pictures go; it is made when the first one is.
      temperature, top_p: of the answers.
      seed: of both; every drawing takes the next one.
      max_new_tokens: most tokens of an answer.
      write: shows text, without a line end of its own.
      drawing: settings of `Janus.generate`; its seed is not read.
      pictures: how many each /draw draws.

    Raises:
      UserError: a setting is impossible; the message names it.
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
        drawing: GenerationConfig | None = None,
        pictures: int = 1,
    ):
        self._janus, self._out, self._seed = janus, out, seed
        self._new = lambda: janus.conversation(temperature, top_p, seed)
        self._max_new_tokens, self._write = max_new_tokens, write
        self._drawing, self._pictures = drawing or GenerationConfig(), pictures
        names = ("cfg_weight", "temperature", "top_k", "top_p")
        given = {name: value for name, value in self._drawing.given().items() if name in names}
        make_sampling_params(janus.config.vq.codebook_size, **given)  # raises now, not at the first
        self._conversation = self._new()
        self._images: list[Image.Image] = []
        self._drawn = self._files = 0

    def run(self, lines: Iterator[str]) -> None:
        """Goes on until the lines end or one is /quit; what a person typed wrong, or stops with Ctrl-C, ends
        nothing else."""
        self._write(f"{HELP}\n")
        for line in lines:
            text = line.strip()
            if text.split()[:1] == ["/quit"]:
                return
            try:
                self._handle(text)
            except KeyboardInterrupt:  # such as of a drawing; an answer sees to its own
                self._write("(stopped)\n")
            except UserError as error:
                self._write(f"{one_line(error)}\n")
            except OSError as error:  # such as a disk that is full now
                if error.filename is None and error.errno is None:
                    raise
                self._write(f"{printable(about_place(error))}\n")

    def _handle(self, text: str) -> None:
        if not text:
            return
        command, *words = text.split(maxsplit=1)
        rest = words[0] if words else ""
        if command == "/image":
            files = typed_files(rest)
            self._images += [load_image(file) for file in files]
            self._write(f"{printable(', '.join(files))}: now ask about it\n")
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
            self._write(f"(the model does not know: {printable(', '.join(unknown))})\n")

    def _answer(self, text: str) -> None:
        self._warn(text)
        pieces = self._conversation.ask(text, self._images, self._max_new_tokens)
        self._images = []
        try:
            for piece in pieces:
                self._write(printable(piece, keep="\n\t"))
        except KeyboardInterrupt:
            pieces.close()
            self._write(" ...")
        self._write("\n")

    def _draw(self, prompt: str) -> None:
        self._warn(prompt)
        check_directory(self._out, "the output directory")  # not after minutes of drawing
        make_directory(self._out)
        seed = (self._seed + self._drawn) % 2**32
        drawn = self._janus.generate(prompt, self._pictures, seed=seed, config=self._drawing)
        for picture in drawn:
            path = self._free_file()
            save_image(path, picture)
            self._files += 1
            self._write(f"{printable(path)}\n")
        self._drawn += 1

    def _free_file(self) -> Path:
        """The next file for a picture; those of earlier chats stay."""
        while os.path.lexists(path := self._out / f"chat_{self._files:03d}.png"):
            self._files += 1
        return path


def typed_files(text: str) -> list[str]:
    """The files that a person means: a name as it is, or names as a shell would read them.

    A name with blanks needs no quotes if the file is there; `~` is the home directory, also in quotes.

    Raises:
      UserError: no name at all.
    """
    if not text:
        raise UserError("/image needs the name of a file: /image FILE")
    try:
        words = shlex.split(text)
    except ValueError:  # such as a single quote in a name
        words = []
    for files in ([text], [os.path.expanduser(text)], list(map(os.path.expanduser, words))):
        if files and all(map(os.path.exists, files)):
            return files
    # None is there: the message about the file should show what was meant.
    return [os.path.expanduser(words[0] if len(words) == 1 else text)]
