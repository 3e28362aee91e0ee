"""Judges over HTTP: what they are asked, what a bad server costs, what is kept, and that a key stays secret."""

import base64
import io
import json
import math
import time

import numpy as np
import pytest
from benchmark_files import write_tsv
from chat_server import chat_server, completion
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.evaluation.endpoint import KEY_VARIABLE, RESPONSE_BYTES, Endpoint, JudgeError
from janus_jax.evaluation.judge_questions import GIVE_UP
from janus_jax.evaluation.judges import (
    PictureJudge,
    TextJudge,
    find_complete,
    find_picture_judge,
    read_option,
)
from janus_jax.evaluation.understanding import get_protocol, open_benchmark, score_answers

OPTIONS = {"A": "a cat", "B": "a dog", "C": "a car"}
PIXELS = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
KEY = "sk-very-secret-42"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in (KEY_VARIABLE, "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def endpoint(url, **fields):
    """One that does not wait between tries."""
    return Endpoint(url, "judge-1", **{"sleep": lambda seconds: None, "timeout": 5} | fields)


def said(reply, **fields):
    """What an endpoint makes of a server's only answer: (text or error, number of requests)."""
    with chat_server(lambda body, number: reply) as (url, asked):
        try:
            return endpoint(url, **fields)("hello"), len(asked.bodies)
        except JudgeError as error:
            return error, len(asked.bodies)


# One question


def test_a_question_is_a_chat_completion(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY}\n")
    with chat_server(lambda body, number: "fine") as (url, asked):
        assert endpoint(f"{url}/")("hello", 2) == "fine"
        assert endpoint(f"{url}/chat/completions")("hello") == "fine"
    assert asked.paths == ["/v1/chat/completions"] * 2
    messages = [{"role": "user", "content": "hello"}]
    assert asked.bodies[0] == {"model": "judge-1", "messages": messages, "temperature": 0.5}
    assert asked.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_without_a_key_none_is_sent_and_fields_can_be_added_and_taken_out():
    with chat_server(lambda body, number: "fine") as (url, asked):
        endpoint(url, body={"temperature": None, "max_completion_tokens": 9})("hello")
    assert "Authorization" not in asked.headers[0]
    assert "temperature" not in asked.bodies[0] and asked.bodies[0]["max_completion_tokens"] == 9


@pytest.mark.parametrize(
    "bad",
    [
        (500, b"", {}),
        (429, b"slow down", {"Retry-After": "7"}),
        b"<html>hello</html>",
        b"",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"text": "an old kind of answer"}]}',
        b'{"choices": ' + b"[" * 100_000,
        (200, b"short", {"Content-Length": "500"}),
    ],
)
def test_a_server_that_fails_is_asked_again(bad):
    waits = []
    with chat_server(lambda body, number: bad if number < 2 else "fine") as (url, asked):
        assert endpoint(url, sleep=waits.append)("hello") == "fine"
    assert len(asked.bodies) == 3 and len(waits) == 2
    if isinstance(bad, tuple) and "Retry-After" in bad[2]:
        assert waits == [7.0, 7.0]
    else:
        assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2


@pytest.mark.parametrize(
    ("reply", "reason", "requests"),
    [
        ((503, b'{"error": {"message": "busy"}}', {}), "HTTP 503: busy", 4),
        ((500, b"\x1b[31m", {}), "HTTP 500", 4),
        ((400, b'{"error": {"message": "no \\u001b[31mlogprobs"}}', {}), r"no \\x1b\[31mlogp", 1),
        ((404, b'{"error": "no model judge-1"}', {}), "HTTP 404: no model judge-1", 1),
        ((401, f'{{"error": "bad key {KEY}"}}'.encode(), {}), f"a key in {KEY_VARIABLE}$", 1),
        ((302, b"", {"Location": "http://127.0.0.1:9/v1"}), "HTTP 302: it leads elsewhere", 1),
        ((307, b"", {"Location": "file:///etc/passwd"}), "HTTP 307: it leads elsewhere", 1),
        (b"<html>", "something else than a chat completion", 4),
        (b" " * (RESPONSE_BYTES + 1), "more than 4096 KiB", 1),
        (completion(None), "said nothing", 1),
        (completion("  "), "said nothing", 1),
    ],
)
def test_a_question_that_fails_says_why_in_one_line(reply, reason, requests, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    error, asked = said(reply)
    assert isinstance(error, JudgeError) and asked == requests
    with pytest.raises(JudgeError, match=reason):
        raise error
    assert KEY not in str(error) and "\n" not in str(error) and str(error).isprintable()


def test_a_key_in_what_a_server_says_is_not_shown(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    error, _ = said((400, json.dumps({"error": f"you sent {KEY}"}).encode(), {}))
    assert str(error) == "HTTP 400: you sent ***"


def test_a_server_that_is_silent_or_drips_does_not_take_longer_than_the_timeout():
    def silent(body, number):
        time.sleep(0.5)
        return "late"

    start = time.monotonic()
    for reply in (silent, lambda body, number: [b" "] * 40):
        with chat_server(reply) as (url, _), pytest.raises(JudgeError, match=r"within 0\.2 s"):
            endpoint(url, timeout=0.2, tries=1)("hello")
    assert time.monotonic() - start < 4  # all drops would be 4 s alone, beside what closing takes


def test_nobody_there():
    with chat_server(lambda body, number: "x") as (url, _):
        pass
    with pytest.raises(UserError, match=r"^the judge judge-1 at 127\.0\.0\.1:\d+: no connection"):
        endpoint(url).check()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must be such as"),
        ("localhost:8000/v1", "must be such as"),
        ("file:///etc/passwd", "must be such as"),
        ("http://", "must be such as"),
        ("http://h:99999/v1", "is none"),
        ("http://[/v1", "is none"),
        ("http://h/v1\r\nX: y", "must be such as"),
        ("https://me:secret@h/v1", f"no password in it; put it in {KEY_VARIABLE}"),
        ("https://h/v1?key=secret", "must end with its path"),
        ("http://far.example/v1", "for everyone to read"),
    ],
)
def test_a_bad_address_is_refused_before_anything_is_sent(url, message, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with pytest.raises(UserError, match=message) as error:
        endpoint(url)
    assert KEY not in str(error.value)


def test_a_damaged_key_is_not_shown(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-\nX-Evil: 1")
    with pytest.raises(UserError, match=f"^the key in {KEY_VARIABLE} has characters") as error:
        endpoint("https://h/v1")
    assert "Evil" not in str(error.value)


# Answers that no rule reads


@pytest.mark.parametrize(
    ("reply", "option"),
    [
        ("B", "B"),
        (" b.\n", "B"),
        ("(C)", "C"),
        ("The answer means option **A**.", "A"),
        ("NONE", "NONE"),
        ("None of them.", "NONE"),
        ("A or B", None),
        ("a cat", None),
        ("", None),
    ],
)
def test_an_option_is_read_out_of_a_reply(reply, option):
    assert read_option(reply, list(OPTIONS)) == option


def test_yes_and_no_are_options_too():
    assert [read_option(r, ["Yes", "No"]) for r in ("no", "Yes.", "It says yes")] == [
        *("No", "Yes", "Yes")
    ]


def test_a_judge_decides_and_is_asked_the_same_only_once(tmp_path):
    cache = tmp_path / "judged.jsonl"
    with chat_server(lambda body, number: "<think>A? B?</think>\nB") as (url, asked):
        for _ in range(2):  # a second one begins with what the first has left
            judge = TextJudge(endpoint(url), cache)
            assert judge.judge("what?", OPTIONS, "the one that barks") == "B"
            assert judge.judge("what?", OPTIONS, "the one that barks") == "B"
            assert (judge.failed, judge.problem()) == (0, "")
        assert len(asked.bodies) == 1
        other = TextJudge(Endpoint(url, "judge-2"), cache)
        other.judge("what?", OPTIONS, "the one that barks")
        assert len(asked.bodies) == 2  # what one judge says is not what another says
    prompt = asked.bodies[0]["messages"][0]["content"]
    assert "the one that barks" in prompt and "A. a cat\nB. a dog\nC. a car" in prompt


def test_nonsense_is_asked_again_warmer_and_then_counted(tmp_path):
    cache = tmp_path / "judged.jsonl"
    with chat_server(lambda body, number: "hm") as (url, asked):
        judge = TextJudge(endpoint(url), cache)
        assert judge.judge("what?", OPTIONS, "x") is None
        assert [body["temperature"] for body in asked.bodies] == [0.0, 0.25, 0.5]
        assert judge.judge("what?", OPTIONS, "x") is None and len(asked.bodies) == 3
    assert judge.failed == 1
    expected = "the judge judge-1 gave no answer to 1 question (its 3 replies name no option)"
    assert judge.problem() == expected
    with chat_server(lambda body, number: "NONE") as (url, _):  # what failed is asked again
        again = TextJudge(endpoint(url), cache)
        assert again.failed == 0 and again.judge("what?", OPTIONS, "x") is None
        assert again.failed == 0  # none of them is an answer


def test_grades(tmp_path):
    replies = ["very good", "0.7"]
    with chat_server(lambda body, number: replies[number]) as (url, asked):
        judge = TextJudge(endpoint(url), tmp_path / "j")
        assert [judge.grade("q", "t", "a"), judge.grade("q", "t", "a")] == [0.7, 0.7]
    assert "q | t | a |" in asked.bodies[0]["messages"][0]["content"]
    with chat_server(lambda body, number: "1.5") as (url, asked):
        assert TextJudge(endpoint(url)).grade("q", "t", "a") is None


def test_a_function_of_ones_own_is_a_judge_and_may_raise(tmp_path, monkeypatch):
    (tmp_path / "my_judge.py").write_text(
        "def complete(prompt, number):\n"
        "    if 'bad' in prompt: raise KeyError('\\x1b[31m')\n"
        "    return None if 'silent' in prompt else 'C'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    judge = TextJudge(find_complete("my_judge:complete"))
    assert judge.name == "complete"
    assert [judge.judge("q", OPTIONS, a) for a in ("good", "bad", "silent")] == ["C", None, None]
    assert judge.failed == 2 and judge.problem().isprintable()


def test_a_server_that_is_gone_is_given_up():
    with chat_server(lambda body, number: (500, b"", {})) as (url, asked):
        judge = TextJudge(endpoint(url, tries=2))
        assert {judge.judge(f"q{i}", OPTIONS, "x") for i in range(GIVE_UP + 20)} == {None}
    assert len(asked.bodies) == 2 * GIVE_UP and judge.failed == GIVE_UP + 20
    assert judge.problem().endswith(f"to {GIVE_UP + 20} questions (HTTP 500); it was asked no more")


def test_refused_questions_do_not_end_the_judging():
    with chat_server(lambda body, number: (400, b"", {})) as (url, asked):
        judge = TextJudge(endpoint(url))
        for i in range(GIVE_UP + 5):
            judge.judge(f"q{i}", OPTIONS, "x")
    assert len(asked.bodies) == GIVE_UP + 5


@pytest.mark.parametrize("bad", [(429, b"", {}), (500, b"", {}), b"", completion("")])
def test_the_first_contact_is_tried_again(bad):
    with chat_server(lambda body, number: bad if number < 3 else "yes") as (url, asked):
        endpoint(url).check()
    assert len(asked.bodies) == 4
    with (
        chat_server(lambda body, number: bad) as (url, asked),
        pytest.raises(UserError, match="the judge judge-1 at 127"),
    ):
        endpoint(url).check()
    assert len(asked.bodies) == 4


def test_judges_are_found_by_address_and_model(tmp_path):
    with chat_server(lambda body, number: "yes") as (url, asked):
        judge = find_picture_judge(f"{url}#org/model-7b", tmp_path / "j")
        assert judge(PIXELS, "is it?") == 1.0 and asked.bodies[0]["model"] == "org/model-7b"
        assert find_complete(f"{url}#x")("hello", 0) == "yes"
    with pytest.raises(UserError, match=r"^which model\? write the judge as http://h/v1#MODEL"):
        find_complete("http://h/v1")
    with pytest.raises(UserError, match=r"cannot be imported"):
        find_picture_judge("no_such_module:judge")


# A whole benchmark


@pytest.fixture
def mmbench(tmp_path):
    rows = [
        dict(
            index=i, image="", question=f"which {i}?", **OPTIONS, answer="ABC"[i % 3], category="c"
        )
        for i in range(40)
    ]
    return open_benchmark("mmbench", write_tsv(tmp_path / "mmbench.tsv", rows))


def test_a_benchmark_asks_many_at_once_and_only_what_no_rule_reads(mmbench, tmp_path):
    answers = {item.index: "A" if i < 8 else f"hm {i}" for i, item in enumerate(mmbench)}
    protocol = get_protocol("paper", "mmbench")
    together = lambda judge, grade: score_answers(mmbench, answers, protocol, judge, grade)

    def reply(body, number):
        time.sleep(0.02)
        return "B" if "hm 9" not in body["messages"][0]["content"] else (400, b"", {})

    told = []
    with chat_server(reply) as (url, asked):
        judge = TextJudge(endpoint(url), tmp_path / "judged.jsonl", workers=8)
        scores = judge.score(together, progress=lambda *done: told.append(done))
        assert len(asked.bodies) == 32 and 2 <= asked.most <= 8
        assert told[0] == (0, 32) and told[-1] == (32, 32)
        assert scores.counts == {"read": 8, "judged": 31, "not understood": 1}
        assert judge.failed == 1
        rights = [v.right for v in scores.verdicts if v.how == "judged"]
        assert sum(rights) == sum(i % 3 == 1 for i in range(8, 40) if i != 9)
        again = TextJudge(endpoint(url), tmp_path / "judged.jsonl").score(together)
        assert len(asked.bodies) == 33 and again.counts == scores.counts
    kept = (tmp_path / "judged.jsonl").read_text()
    assert kept.count("\n") == 1 + 32 + 1 and KEY not in kept


# Pictures


def test_a_picture_is_sent_as_it_is_and_probabilities_are_read(tmp_path):
    replies = [
        completion("No", {"Yes": math.log(0.3), " yes": math.log(0.3), "no": math.log(0.2)}),
        completion("<think>Yes?</think> no", {"<think>": 0.0, "Yes": math.log(0.01)}),
        "Yes, there is.",
        completion("Yes", {"yes": "much"}),
    ]
    with chat_server(lambda body, number: replies[number]) as (url, asked):
        judge = PictureJudge(endpoint(url), tmp_path / "j", workers=1)
        found = judge.batch([PIXELS] * 4, [f"is it {i}?" for i in range(4)])
        np.testing.assert_allclose(found, [0.75, 0.0, 1.0, 1.0])
        assert judge(PIXELS, "is it 0?") == pytest.approx(0.75) and len(asked.bodies) == 4
    picture, text = asked.bodies[0]["messages"][0]["content"]
    kind, _, data = picture["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    np.testing.assert_array_equal(shown, PIXELS)
    assert text["text"] == "is it 0? Answer with yes or no."
    assert asked.bodies[0]["logprobs"] is True and judge.name.startswith("judge-1: ")


def test_a_question_without_an_answer_is_no_and_stays_counted(tmp_path):
    with chat_server(lambda body, number: "perhaps") as (url, _):
        judge = PictureJudge(endpoint(url), tmp_path / "j")
        assert judge(PIXELS, "is it?") == 0.0 and judge.failed == 1
    assert PictureJudge(endpoint(url), tmp_path / "j").failed == 1
    with chat_server(lambda body, number: "yes") as (url, _):
        judge = PictureJudge(endpoint(url), tmp_path / "j")
        assert judge(PIXELS, "is it?") == 1.0 and judge.failed == 0


def test_a_server_that_is_gone_ends_the_judging_of_pictures(tmp_path):
    with chat_server(lambda body, number: (500, b"", {})) as (url, _):
        judge = PictureJudge(endpoint(url, tries=1), tmp_path / "j", workers=4)
        with pytest.raises(UserError, match=r"run the same command again$"):
            judge.batch([PIXELS] * 30, [f"{i}?" for i in range(30)])
    with chat_server(lambda body, number: "yes") as (url, _):
        judge = PictureJudge(endpoint(url), tmp_path / "j")
        assert judge.batch([PIXELS] * 30, [f"{i}?" for i in range(30)]) == [1.0] * 30
        assert judge.failed == 0
