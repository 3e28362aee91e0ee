"""A server of OpenAI's form on this machine that answers, or misbehaves, as a test tells it."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, logprobs=None):
    """What a server answers; `logprobs`: token -> log-probability, of the first token."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if logprobs:
        top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
        choice["logprobs"] = {"content": [{"token": "x", "logprob": 0.0, "top_logprobs": top}]}
    return {"choices": [choice]}


class Asked:
    """The requests that came, and how many were answered at once."""

    def __init__(self):
        self.paths, self.bodies, self.headers = [], [], []
        self.now = self.most = 0
        self.lock = threading.Lock()


@contextmanager
def chat_server(reply):
    """(its base URL, what it was asked).

    `reply(body, number)` gives a text, a dict (the answer as it is), bytes (no JSON perhaps), a tuple (status,
    bytes, headers), or a list of bytes that are sent with pauses of 0.1 s.
    """
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with asked.lock:
                number = len(asked.bodies)
                asked.bodies.append(body)
                asked.paths.append(self.path)
                asked.headers.append(dict(self.headers))
                asked.now += 1
                asked.most = max(asked.most, asked.now)
            try:
                self._send(reply(body, number))
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                with asked.lock:
                    asked.now -= 1

        do_GET = do_POST

        def _send(self, answer):
            status, headers = 200, {}
            if isinstance(answer, tuple):
                status, answer, headers = answer
            if isinstance(answer, str):
                answer = completion(answer)
            if isinstance(answer, dict):
                answer = json.dumps(answer).encode()
            parts = answer if isinstance(answer, list) else [answer]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()
                if len(parts) > 1:
                    time.sleep(0.1)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
