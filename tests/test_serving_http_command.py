"""`janus-serve`: what is wrong with its flags; starting, serving and stopping on an engine without a model."""

import argparse
import json
import os
import signal
import socket
import sys
import threading

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

from dummies_serving import CARD, CHAT, FakeEngine, wait_for

from janus_jax.cli import serve
from janus_jax.errors import RunError, UserError
from janus_jax.serving.http.limits import Limits
from janus_jax.serving.http.security import check_binding, is_loopback

BAD = [
    (("--prot", "1"), "--prot"),
    (("--port", "99999"), "--port must be from 0 to 65535"),
    (("--max_batch", "0"), "--max_batch must be from 1"),
    (("--queue", "0"), "--queue must be"),
    (("--timeout", "0"), "--timeout must be above 0"),
    (("--timeout", "nan"), "--timeout must be above 0"),
    (("--host", "0.0.0.0"), "--api-key"),
    (("--host", "::"), "--api-key"),
    (("--host", ""), "--api-key"),
    (("--api-key", ""), "not empty"),
    (("--api-key", "a\nb"), "printable"),
    (("--host", "203.0.113.7", "--insecure"), "cannot listen on 203.0.113.7:8000"),
    (("--step", "first"), "the number of a step"),
    (("--port", "0", "--mesh", "data=2;tensor=2"), "--mesh must look like data=2,tensor=4"),
    (("--port", "0", "--mesh", "fsdp=2"), "--mesh must look like data=2,tensor=4"),
    (("--port", "0", "--mesh", "data=1000"), "needs 1000 devices"),
    (("--memory_gb", "0"), "--memory_gb must be above 0"),
    (("--memory_gb", "-1"), "--memory_gb must be above 0"),
    (("--memory_gb", "nan"), "--memory_gb must be above 0"),
    (("--memory_gb", "1e308"), "--memory_gb must be above 0 and finite"),
    (("--memory_gb", "much"), "--memory_gb"),
    (("--allow-image-host", "https://images.example.org"), "no name of a host"),
    (("--allow-image-host", "127.0.0.1"), "no address of the public internet"),
    (("--allow-image-host", "images.example.org", "--allow-image-host", ""), "no name of a host"),
]


@pytest.fixture
def call(monkeypatch, capsys):
    """(exit code, standard output, standard error) of the command."""
    monkeypatch.delenv("JANUS_API_KEY", raising=False)

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["janus-serve", *flags])
        code = 0
        try:
            serve.command()
        except SystemExit as ended:
            code = ended.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(("flags", "words"), BAD)
def test_bad_flags_are_one_line(call, flags, words):
    code, out, err = call(*flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_help_shows_how_to_start_and_to_ask(call):
    code, out, _ = call("--help")
    assert code == 0
    assert "janus-serve --checkpoint runs/janus_tiny" in out and "python -m" not in out
    assert "curl http://127.0.0.1:8000/v1/images/generations" in out and "\\\n    -d" in out


def test_a_port_that_is_taken_is_seen_before_the_model_is_read(call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = call("--port", str(taken.getsockname()[1]), "--checkpoint", "/no/such")
    assert code == 2 and "Address already in use" in err and "--port" in err


def test_of_two_servers_that_start_together_the_second_ends_at_once(call):
    first = serve.listen("127.0.0.1", 0)
    try:
        code, _, err = call("--port", str(first.getsockname()[1]), "--checkpoint", "/no/such")
    finally:
        first.close()
    assert code == 2 and "Address already in use" in err


def test_without_a_checkpoint_it_says_what_there_could_be(call, monkeypatch, tmp_path):
    """And does not ask the hub, where a stranger may have the name."""
    monkeypatch.chdir(tmp_path)
    code, out, err = call("--port", "0")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no runs/janus_tiny here" in err and "--checkpoint DIR" in err and "janus-train" in err


def test_without_the_packages_it_says_what_to_install(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = call()
    assert code == 2 and 'pip install "janus-jax[serve]"' in err


def test_the_key_may_come_from_the_environment(call, monkeypatch):
    monkeypatch.setenv("JANUS_API_KEY", "of the environment")
    monkeypatch.setattr(sys, "argv", ["janus-serve"])
    assert serve.parse_flags().api_key == "of the environment"
    monkeypatch.setattr(sys, "argv", ["janus-serve", "--api-key", "of the flag"])
    assert serve.parse_flags().api_key == "of the flag"


@pytest.fixture
def loaded(monkeypatch):
    """Runs the command up to the model; what it asks of `Janus.load`."""
    from janus_jax.inference import Janus

    monkeypatch.delenv("JANUS_API_KEY", raising=False)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    calls = []

    def load(*args, **options):
        calls.append((args, options))
        raise UserError("that is all")

    monkeypatch.setattr(Janus, "load", load)

    def run(*flags):
        monkeypatch.setattr(
            sys, "argv", ["janus-serve", "--checkpoint", "a/model", "--port", "0", *flags]
        )
        with pytest.raises(UserError, match="that is all"):
            serve.main()
        ((args, options),) = calls
        calls.clear()
        return args, options

    return run


@pytest.mark.multidevice
def test_how_the_model_is_loaded(loaded):
    args, options = loaded()
    assert args == ("a/model",)
    assert (options["mesh"], options["memory_limit"], options["max_batch"]) == (None, None, 8)
    many = ("--mesh", "data=1,tensor=2", "--memory_gb", "1.5", "--int8", "weights,cache")
    _, options = loaded(*many, "--max_batch", "4", "--dtype", "bfloat16", "--adapter", "an/adapter")
    assert dict(options["mesh"].shape) == {"data": 1, "fsdp": 1, "tensor": 2}
    assert options["memory_limit"] == 3 * 2**29
    assert (options["int8"], options["max_batch"]) == (["weights", "cache"], 4)
    assert (str(options["policy"].compute_dtype), options["adapter"]) == ("bfloat16", "an/adapter")


def test_hosts_of_pictures_reach_the_requests(signals):
    import httpx

    from janus_jax.serving.http.image_hosts import parse_image_host

    engine = Warming()
    engine.compiled.set()
    listener = serve.listen("127.0.0.1", 0)
    base = "http://{}:{}".format(*listener.getsockname())
    seen = []

    def use():
        picture = {"type": "image_url", "image_url": {"url": "https://evil.example/a.png"}}
        body = {"messages": [{"role": "user", "content": [picture, {"type": "text", "text": "?"}]}]}
        try:
            transport = httpx.HTTPTransport(retries=20)
            with httpx.Client(transport=transport, timeout=10) as client:
                seen.append(client.post(f"{base}{CHAT}", json=body).json()["error"]["message"])
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    user = threading.Thread(target=use)
    user.start()
    hosts = [parse_image_host("images.example.org")]
    serve.run_server(engine, CARD, Limits(), flags_of(), listener, hosts)
    user.join()
    assert "from which this server fetches nothing" in seen[0]


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("", False),
        ("2130706433", False),
        ("localhost.example.com", False),
    ],
)
def test_what_only_this_machine_reaches(host, local):
    assert is_loopback(host) is local
    check_binding(host, "a-key", insecure=False)
    check_binding(host, None, insecure=True)
    if local:
        check_binding(host, None, insecure=False)
    else:
        with pytest.raises(UserError, match="--insecure"):
            check_binding(host, None, insecure=False)


class Warming(FakeEngine):
    """Compiles until `compiled` is set."""

    def __init__(self, failure=None):
        super().__init__()
        self.ready, self.compiled, self.failure = False, threading.Event(), failure

    def warm_up(self, progress):
        assert list(progress([1, 2])) == [1, 2]
        assert self.compiled.wait(5)
        if self.failure:
            raise self.failure
        self.ready = True


def flags_of(**changed):
    flags = {
        "timeout": 30.0,
        "api_key": None,
        "host": "127.0.0.1",
        "quiet": True,
        "insecure": False,
        "no_ui": True,
    }
    return argparse.Namespace(**flags | changed)


@pytest.fixture
def signals():
    """Leaves the handlers as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_it_serves_says_when_it_is_ready_and_drains_at_sigterm(signals, capfd):
    import absl.logging  # noqa: F401  (its handler holds stderr, and is to keep it)
    import httpx

    engine = Warming()
    listener = serve.listen("127.0.0.1", 0)
    base = "http://{}:{}".format(*listener.getsockname())
    body = {"messages": [{"role": "user", "content": "hello"}]}
    headers = {"Authorization": "Bearer k"}
    seen = {}

    def use():
        try:
            transport = httpx.HTTPTransport(retries=20)
            with httpx.Client(transport=transport, headers=headers, timeout=10) as client:
                seen["before"] = client.get(f"{base}/ready").status_code
                engine.compiled.set()
                wait_for(lambda: client.get(f"{base}/ready").status_code == 200)
                engine.go.clear()
                threading.Timer(0.3, engine.go.set).start()
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
                seen["asked"] = client.post(f"{base}{CHAT}", json=body).json()
        finally:
            if "asked" not in seen:
                os.kill(os.getpid(), signal.SIGTERM)

    user = threading.Thread(target=use)
    user.start()
    serve.run_server(engine, CARD, Limits(), flags_of(api_key="k"), listener)
    user.join()
    assert seen["before"] == 503
    assert seen["asked"]["choices"][0]["message"]["content"] == "You said: hello"
    assert engine.closed is True and not engine.cancelled
    out, err = capfd.readouterr()
    assert f"{CARD.name} is ready at {base}/v1; try\n  curl {base}/v1/" in out
    assert "$JANUS_API_KEY" in out and "stopping" in err and "Traceback" not in err


def test_sigterm_ends_it_while_the_model_is_read(signals, monkeypatch):
    """Process 1 of a container has no handler of its own: the signal would be lost."""
    from janus_jax.inference import Janus

    def load(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it goes on")

    monkeypatch.setattr(Janus, "load", load)
    monkeypatch.setattr(sys, "argv", ["janus-serve", "--checkpoint", "a/model", "--port", "0"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as the kernel does with process 1
    with pytest.raises(SystemExit) as ended:
        serve.main()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_a_model_that_does_not_fit_ends_the_server(signals):
    engine = Warming(UserError("not enough memory"))
    engine.compiled.set()
    with pytest.raises(UserError, match="not enough memory"):
        serve.run_server(engine, CARD, Limits(), flags_of(), serve.listen("127.0.0.1", 0))


def run_in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_an_engine_that_stops_by_itself_ends_the_server(signals):
    """What starts servers again can do so; a server that refuses everything for ever would look alive."""
    engine = Warming()
    engine.compiled.set()

    def break_it():
        wait_for(lambda: engine.ready)
        engine.failed = True

    breaking = run_in_thread(break_it)
    with pytest.raises(RunError, match="the engine has stopped"):
        serve.run_server(engine, CARD, Limits(), flags_of(), serve.listen("127.0.0.1", 0))
    breaking.join()
    assert engine.closed is True


def test_a_second_signal_does_not_wait_for_what_is_running(signals, capfd, monkeypatch):
    import httpx

    class Cancelling(Warming):
        def close(self, drain=True):
            super().close(drain)
            if not drain:
                for ticket in self.tickets:
                    ticket.cancel()

        def submit(self, *args):
            self.tickets = [super().submit(*args)]
            return self.tickets[0]

    monkeypatch.setattr(serve, "_SAYING", 0.5)
    engine = Cancelling()
    engine.compiled.set()
    engine.go.clear()  # the answer never ends
    listener = serve.listen("127.0.0.1", 0)
    listener_address = listener.getsockname()
    url = "http://{}:{}".format(*listener_address) + CHAT
    deaf, seen = socket.socket(), []

    def ask():
        body = {"messages": [{"role": "user", "content": "hello"}]}
        seen.append(httpx.post(url, json=body, timeout=10))

    def stop_twice():
        deaf.connect(listener_address)
        deaf.sendall(
            b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        )  # and no body
        wait_for(lambda: engine.jobs)
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threads = [run_in_thread(ask), run_in_thread(stop_twice)]
    serve.run_server(engine, CARD, Limits(), flags_of(), listener)
    for thread in threads:
        thread.join()
    deaf.close()
    assert seen[0].json()["error"]["code"] == "cancelled" and len(engine.cancelled) == 1
    err = capfd.readouterr().err
    assert "answered first" in err and "stopping now" in err and "Traceback" not in err


def test_it_says_when_fewer_are_computed_together_than_were_asked_for(capsys):
    serve.say_what_fits((8, 8), 8)
    assert capsys.readouterr().err == ""
    serve.say_what_fits((8, 2), 8)
    line = capsys.readouterr().err
    assert "8 picture(s) and 2 answer(s)" in line and "not 8" in line and "--context" in line


def test_the_line_to_try_is_a_command():
    import shlex

    line = serve.ready_line(("::1", 80, 0, 0), None, "x").split("\n")[1]
    words = shlex.split(line)
    assert words[:2] == ["curl", "http://[::1]:80/v1/images/generations"]
    assert json.loads(words[-1])["prompt"]
