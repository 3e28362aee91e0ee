"""Reads Dockerfiles and .dockerignore for tests, as far as ours need it."""

import fnmatch
import json
import re
from typing import NamedTuple


class Instruction(NamedTuple):
    """A line of a Dockerfile, such as `RUN` and what follows."""

    name: str
    text: str

    @property
    def words(self):
        """Of the form with brackets."""
        return json.loads(self.text[self.text.index("[") :])


def read_dockerfile(text):
    """The instructions, in order."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = [line.partition(" ") for line in joined.split("\n") if line.strip()]
    return [Instruction(name, rest.strip()) for name, _, rest in found]


def environment(instructions):
    """What ENV and ARG set."""
    texts = [i.text for i in instructions if i.name in ("ENV", "ARG")]
    return dict(re.findall(r"([A-Z_]+)=(\S+)", " ".join(texts)))


def is_ignored(path, ignore):
    """Whether .dockerignore, a text, keeps out a file: the last line that fits it decides.

    As far as `NAME` at the root and `**/NAME` anywhere go, each with all that is in it.
    """
    ignored = False
    parts = path.split("/")
    for line in ignore.splitlines():
        pattern = line.removeprefix("!")
        names = parts if pattern.startswith("**/") else parts[:1]
        pattern = pattern.removeprefix("**/")
        assert "/" not in pattern, "this reads no other lines"
        if not line.startswith("#") and any(fnmatch.fnmatchcase(name, pattern) for name in names):
            ignored = not line.startswith("!")
    return ignored
