"""Requests that clients of other people sent, and what comes of them.

Each was recorded while the client, of the version that is named, talked to this server; long texts are shortened.
"""

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")

from dummies_serving import CARD, CHAT, DRAW, FakeEngine, client_of, data_url, file_of, image_part

from janus_jax.serving import jobs

PNG = data_url(file_of(77))
PLACE = "<image_placeholder>"
HELLO = {"role": "user", "content": "hello"}
# The beginning of what Open WebUI asks by itself after each answer.
TITLE = "### Task:\nGenerate a concise title summarizing the chat history.\n### Guidelines:\n- The title"
DRAWN = (
    "<context>The requested image has been created by the system successfully and is now being shown to the user. "
    "Let the user know that the image they requested has been generated and is now shown in the chat.</context>"
)
ATTACHED = '<attached_files>\n<file type="file" id="0a0e" name="pic.png"/>\n</attached_files>\n\n'

# Client -> (body without the model, (role, text, pictures) of the messages that the engine gets)
CHATS = {
    "openai (Python) 2.54.0: an answer that is sent back, model_dump()": (
        {
            "messages": [
                HELLO,
                {
                    "content": "You said: hello",
                    "refusal": None,
                    "role": "assistant",
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "tool_calls": None,
                },
                {"role": "user", "content": "more"},
            ]
        },
        [("user", "hello", 0), ("assistant", "You said: hello", 0), ("user", "more", 0)],
    ),
    "openai (Python) 2.54.0: the role developer": (
        {"messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}]},
        [("system", "x", 0), ("user", "y", 0)],
    ),
    "openai (Python) 2.54.0: all that may be a default": (
        {
            "messages": [{"role": "user", "content": "y", "name": "bob"}],
            "frequency_penalty": 0,
            "logit_bias": {},
            "logprobs": False,
            "metadata": {},
            "modalities": ["text"],
            "n": 1,
            "parallel_tool_calls": True,
            "presence_penalty": 0,
            "prompt_cache_key": "x",
            "response_format": {"type": "text"},
            "safety_identifier": "y",
            "service_tier": "auto",
            "store": False,
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": None,
            "user": "me",
        },
        [("user", "y", 0)],
    ),
    "langchain-openai 1.7.4: settings": (
        {
            "messages": [HELLO],
            "frequency_penalty": 0.0,
            "logprobs": False,
            "max_completion_tokens": 20,
            "n": 1,
            "presence_penalty": 0.0,
            "seed": 1,
            "stop": ["x"],
            "stream": False,
            "temperature": 0.5,
            "top_p": 0.9,
        },
        [("user", "hello", 0)],
    ),
    "langchain-openai 1.7.4: a name": (
        {
            "messages": [
                HELLO,
                {"content": "You said: hello", "role": "assistant"},
                {"content": "more", "name": "bob", "role": "user"},
            ],
            "stream": False,
        },
        [("user", "hello", 0), ("assistant", "You said: hello", 0), ("user", "more", 0)],
    ),
    "langchain-openai 1.7.4: two messages of the user": (
        {"messages": [{"content": "a", "role": "user"}, {"content": "b", "role": "user"}]},
        [("user", "a\nb", 0)],
    ),
    "litellm 1.110.2": (
        {
            "messages": [HELLO],
            "temperature": 0.5,
            "n": 1,
            "max_tokens": 5,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "response_format": {"type": "text"},
            "seed": 3,
        },
        [("user", "hello", 0)],
    ),
    "llm 0.32.1: a picture": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "what"}, image_part(PNG)]}
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        [("user", f"what\n{PLACE}", 1)],
    ),
    "@ai-sdk/openai-compatible 2.0.92 (ai 6.0.326)": (
        {"frequency_penalty": 0, "presence_penalty": 0, "messages": [HELLO]},
        [("user", "hello", 0)],
    ),
    "@ai-sdk/openai 3.0.141 (ai 6.0.326): options": (
        {"user": "me", "parallel_tool_calls": True, "store": False, "messages": [HELLO]},
        [("user", "hello", 0)],
    ),
    "Open WebUI 0.12.4: a title, by itself": (
        {"messages": [{"role": "user", "content": TITLE}], "stream": False, "max_tokens": 1000},
        [("user", TITLE, 0)],
    ),
    "Open WebUI 0.12.4: after an answer that failed": (
        {
            "stream": True,
            "messages": [
                HELLO,
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": ATTACHED},
                        {"type": "text", "text": "what is in the picture?"},
                        image_part(PNG),
                    ],
                },
            ],
        },
        [("user", f"hello\n{ATTACHED}\nwhat is in the picture?\n{PLACE}", 1)],
    ),
    "Open WebUI 0.12.4: the words to a picture that it had drawn": (
        {
            "stream": True,
            "messages": [{"role": "system", "content": DRAWN}, HELLO],
        },
        [("system", DRAWN, 0), ("user", "hello", 0)],
    ),
}


@pytest.fixture(scope="module")
def served():
    engine = FakeEngine()
    with client_of(engine) as client:
        yield client, engine


@pytest.mark.parametrize("name", CHATS)
def test_chats(served, name):
    client, engine = served
    body, wanted = CHATS[name]
    answer = client.post(CHAT, json={"model": CARD.name, **body})
    assert answer.status_code == 200, answer.text
    messages = engine.jobs[-1].messages
    assert [(m.role, m.text, len(m.pictures)) for m in messages] == wanted


DRAWINGS = {
    "Open WebUI 0.12.4": {"n": 1, "response_format": "b64_json"},
    "Open WebUI 0.12.4: size set": {"n": 1, "size": "32x32", "response_format": "b64_json"},
    "openai (Python) 2.54.0": {
        "background": "auto",
        "moderation": "auto",
        "quality": "auto",
        "style": "vivid",
        "user": "me",
    },
    "openai (Python) 2.54.0: as for dall-e-3": {"background": "opaque", "quality": "standard"},
    "litellm 1.110.2": {"n": 1, "quality": "auto", "size": "auto", "user": "me"},
    "@ai-sdk/openai 3.0.141 (ai 6.0.326)": {
        "n": 1,
        "quality": "auto",
        "user": "me",
        "response_format": "b64_json",
    },
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings(served, name):
    client, engine = served
    body = {"model": CARD.name, "prompt": "a cat", "seed": 5}
    answer = client.post(DRAW, json=body | DRAWINGS[name])
    assert answer.status_code == 200, answer.text
    # As without what the client adds.
    assert engine.jobs[-1] == jobs.DrawJob("a cat", seed=5)
    assert len(answer.json()["data"]) == 1


TOOL = {"type": "function", "function": {"name": "get_current_timestamp", "parameters": {}}}


@pytest.mark.parametrize(
    ("name", "path", "field", "body"),
    [
        (
            "Open WebUI 0.12.4, function calling 'native'",
            CHAT,
            "tools",
            {"stream": True, "tools": [TOOL]},
        ),
        (
            "langchain-openai 1.7.4, with_structured_output",
            CHAT,
            "response_format",
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "object"}, "name": "A", "strict": True},
                }
            },
        ),
        (
            "Open WebUI 0.12.4, with its own size",
            DRAW,
            "size",
            {"n": 1, "size": "512x512", "response_format": "b64_json"},
        ),
        (
            "langchain-community 0.4.2, DallEAPIWrapper",
            DRAW,
            "size",
            {"n": 1, "size": "1024x1024"},
        ),
    ],
)
def test_what_would_change_the_answer_is_refused(served, name, path, field, body):
    client, engine = served
    engine.jobs.clear()
    asked = {"messages": [HELLO]} if path == CHAT else {"prompt": "a cat"}
    answer = client.post(path, json={"model": CARD.name, **asked, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), name
    assert not engine.jobs


def test_tools_that_are_not_to_be_called(served):
    client, _ = served
    body = {"messages": [HELLO], "tools": [TOOL], "tool_choice": "none"}
    assert client.post(CHAT, json=body).status_code == 200
    assert client.post(CHAT, json=body | {"tool_choice": "auto"}).status_code == 400


def test_an_answer_of_nothing_may_be_sent_back(served):
    """A model may end its answer at once; the next question has that answer before it."""
    client, engine = served
    for nothing in ("", " \n", None, []):
        messages = [HELLO, {"role": "assistant", "content": nothing}, HELLO]
        assert client.post(CHAT, json={"messages": messages}).status_code == 200
        assert [m.text for m in engine.jobs[-1].messages] == ["hello\nhello"]


def test_messages_of_one_role_keep_their_order(served):
    """Two of the system, and pictures of two messages."""
    client, engine = served
    other = data_url(file_of(200))
    messages = [
        {"role": "system", "content": "a"},
        {"role": "developer", "content": "b"},
        {"role": "user", "content": [image_part(PNG), {"type": "text", "text": "one"}]},
        {"role": "user", "content": [image_part(other), {"type": "text", "text": "two"}]},
    ]
    assert client.post(CHAT, json={"messages": messages}).status_code == 200
    system, user = engine.jobs[-1].messages
    assert (system.text, user.text) == ("a\nb", f"{PLACE}\none\n{PLACE}\ntwo")
    assert [int(picture[3, 3, 0]) for picture in user.pictures] == [77, 200]


def test_browsers_of_other_pages_are_not_let_in(served):
    """No header of CORS: a page of another origin cannot read an answer, and may not send JSON."""
    client, _ = served
    origin = {"Origin": "https://chat.example"}
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    assert client.options(CHAT, headers=origin | asks).status_code == 405
    answer = client.post(CHAT, json={"messages": [HELLO]}, headers=origin)
    assert not [name for name in answer.headers if name.startswith("access-control-")]
