"""Asks a server every 10 ms whether it lives, from a process of its own, and says how late the answers were.

    python -m benchmarks.serving.probe http://127.0.0.1:8000

It goes on until its standard input is closed. A delay is counted from the moment at which the question was due, so
that a server which does not answer for 0.2 s has twenty late answers and not one.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
import urllib.parse

from benchmarks.serving.client import percentiles

EVERY = 0.01
_LIMIT = 60.0


def main() -> None:
    address = urllib.parse.urlsplit(sys.argv[1])
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=_LIMIT)
    connection.connect()
    delays: list[float] = []
    own: list[float] = []
    print("started", flush=True)
    due = time.perf_counter()
    while not ended.is_set():
        left = due - time.perf_counter()
        if left > 0:
            time.sleep(left)
            # What this process itself is late, as it had to wait for a core.
            own.append(time.perf_counter() - due)
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"/health answers {answer.status}")
        delays.append(time.perf_counter() - due)
        due += EVERY
    print(json.dumps({"asked": len(delays), "delay": percentiles(delays), "own": percentiles(own)}))


if __name__ == "__main__":
    main()
