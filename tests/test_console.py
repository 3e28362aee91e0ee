"""What a terminal shows: control characters written out, poor encodings and closed pipes no failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from janus_jax.console import printable
from janus_jax.errors import UserError, one_line

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jname", r"\x1b[2Jname"),
        ("\x9b31m", r"\x9b31m"),  # the same as ESC [ in one character
        ("\x07\x08\x7f", r"\x07\x08\x7f"),
        ("a\rb", r"a\rb"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2028", r"\u2028"),
        ("你好 ｜▁ é\u200f😀", "你好 ｜▁ é\u200f😀"),
        (Path("a/b"), "a/b"),
    ],
)
def test_what_would_steer_a_terminal_is_written_out(text, shown):
    assert printable(text) == shown


def test_an_answer_keeps_its_lines_and_an_error_has_one():
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"
    assert one_line(UserError("no file\n  \x1b]0;title\x07")) == r"no file \x1b]0;title\x07"


def run(body: str, redirect: str = "", **env: str) -> subprocess.CompletedProcess:
    """Runs `body` as an entry point's main, in a shell."""
    script = f"import sys\nfrom janus_jax.errors import *\ndef main():\n    {body}\nrun_main(main)"
    shell = f'"$0" -c "$1" {redirect}; echo "code ${{PIPESTATUS[0]}}" >&2'
    return subprocess.run(
        ["bash", "-c", shell, sys.executable, script],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "latin-1", "cp437", "utf-8"])
def test_every_text_can_be_printed(encoding):
    text = r"print('\u4f60\u597d \U0001f600 \ud83d'); print('end')"
    done = run(text, PYTHONIOENCODING=encoding)
    assert done.stderr == b"code 0\n"
    shown = done.stdout.decode(encoding)
    assert shown.endswith("\nend\n")
    assert ("你" if encoding in ("gbk", "utf-8") else r"\u4f60") in shown
    assert ("😀" if encoding == "utf-8" else r"\U0001f600") in shown and r"\ud83d" in shown


@pytest.mark.parametrize(
    ("body", "redirect"),
    [
        ("print('x' * 100_000); open('done', 'w'); print('y' * 100_000)", "| true"),
        ("print('x' * 100_000); open('done', 'w'); print('y')", "| head -c 1"),
        ("print('x', flush=True); open('done', 'w'); print('y')", ">&- 2>&-"),
        ("[print('x' * 100_000, file=sys.stderr) for _ in 'ab']; open('done', 'w')", "2>&1 | true"),
    ],
)
def test_a_reader_who_goes_away_is_no_error(tmp_path, monkeypatch, body, redirect):
    monkeypatch.chdir(tmp_path)
    done = run(body, redirect)
    assert done.stderr == b"code 0\n"
    assert (tmp_path / "done").exists()


def test_a_full_disk_behind_the_output_is_one_line():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    lines = run("print('x')", "> /dev/full").stderr.decode().splitlines()
    assert lines[0].startswith("error: no space left on the disk (while writing)")
    assert lines[1:] == ["code 2"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("open('file/x')", "file/x: Not a directory; a part of this path is a file"),
        ("open('x' * 300)", "File name too long; choose a shorter name"),
        ("open('loop')", "loop: Too many levels of symbolic links"),
        ("open('.', 'w')", ".: Is a directory; a directory is in the place of a file"),
        (r"open('no\x1b[31m')", r"no\x1b[31m: No such file or directory; check the name"),
        ("import os; os.mkdir('file')", "file: File exists; something else has this name"),
        ("import os; os.rename('file', 'dir')", "dir: Is a directory"),  # the place, not what moves
        ("raise UserError('a\\x1bb')", r"a\x1bb"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_line(tmp_path, monkeypatch, body, said):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("dir").mkdir()
    Path("loop").symlink_to("loop")
    error, code = run(body).stderr.decode().splitlines()
    assert error.startswith("error: ") and said in error and code == "code 2"


@pytest.mark.parametrize("body", ["raise OSError('a bug')", "1 / 0"])
def test_a_bug_keeps_its_traceback(body):
    assert b"Traceback" in run(body).stderr
