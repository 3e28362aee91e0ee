"""The pages about clients and about the official demos: examples run where their packages are installed."""

import re
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

from dummies_serving import CARD, FakeEngine, app_of, server_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "serving_clients.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def package(example):
    return re.match(r"(?:from|import) (\w+)", example)[1]


@pytest.mark.parametrize("example", EXAMPLES, ids=package)
def test_an_example(example, capsys, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it fetches a list of prices
    pytest.importorskip(package(example))
    engine = FakeEngine()
    with server_of(app_of(engine)) as (_, port):
        code = example.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        exec(code.replace("janus-tiny", CARD.name), {})
    assert "You said: what is an apple?" in capsys.readouterr().out
    assert engine.jobs


def test_the_comparison_names_tests_that_there_are():
    folder = Path(__file__).resolve().parent
    page = PAGE.with_name("serving_comparison.md").read_text("utf-8")
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", page)
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (folder / file).read_text("utf-8") or not name, (file, name)
