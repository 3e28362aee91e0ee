"""Hosts for tests that fetch: TLS servers on this machine, certificates of an authority of their own."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

_NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2".split()


class Authority:
    """Makes certificates with `openssl`, in a directory; tests are skipped where there is none."""

    def __init__(self, directory):
        if shutil.which("openssl") is None:
            pytest.skip("no openssl")
        self._directory = directory
        self._made = {}
        extensions = [
            "basicConstraints=critical,CA:true",
            "subjectKeyIdentifier=hash",
            "keyUsage=critical,keyCertSign",
        ]
        self._make("authority", extensions)

    def _make(self, name, extensions, *options):
        files = [self._directory / f"{name}.{kind}" for kind in ("pem", "key")]
        config = self._directory / f"{name}.cnf"
        lines = ["[req]", "distinguished_name=name", "[name]", "[ext]", *extensions]
        config.write_text("\n".join(lines))
        command = ["openssl", "req", "-x509", *_NEW_KEY, "-subj", f"/CN={name}"]
        command += ["-config", config, "-extensions", "ext", *options]
        command += ["-out", files[0], "-keyout", files[1]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and "unknown option" in done.stderr.lower():
            pytest.skip("openssl is too old")
        assert done.returncode == 0, done.stderr
        return files

    def client(self):
        """What trusts it alone."""
        return ssl.create_default_context(cafile=self._directory / "authority.pem")

    def server(self, *names):
        """What has a certificate for names such as "DNS:a.example" or "IP:127.0.0.1"."""
        if names not in self._made:
            extensions = [
                f"subjectAltName={','.join(names)}",
                "basicConstraints=critical,CA:false",
                "authorityKeyIdentifier=keyid",
                "extendedKeyUsage=serverAuth",
            ]
            authority = [self._directory / f"authority.{kind}" for kind in ("pem", "key")]
            signed = ["-CA", authority[0], "-CAkey", authority[1]]
            self._made[names] = self._make(f"server{len(self._made)}", extensions, *signed)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._made[names])
        return context


class TlsServer:
    """Calls `answer(connection, request)` for each connection, in a thread.

    Attributes:
      port: it listens on.
      requests: their bytes, up to the empty line.
      names: of the hosts that were asked for in TLS, one a handshake.
      connections: that were made, also those that came to nothing.
      gone: set when the other side has closed a connection that `answer` left.
    """

    def __init__(self, context, answer, address="127.0.0.1", port=0):
        self._context, self._answer = context, answer
        self._context.sni_callback = lambda connection, name, _: self.names.append(name)
        self.requests, self.names, self.connections = [], [], 0
        self.gone = threading.Event()
        self._listener = socket.create_server((address, port))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, plain):
        plain.settimeout(10)
        with contextlib.suppress(OSError), self._context.wrap_socket(plain, True) as connection:
            request = b""
            while b"\r\n\r\n" not in request:
                part = connection.recv(65536)
                if not part:
                    return
                request += part
            self.requests.append(request)
            try:
                self._answer(connection, request)
                if not connection.recv(1):
                    self.gone.set()
            except OSError:
                self.gone.set()

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def response(body=b"", status="200 OK", length=True, **headers):
    """The bytes of an answer; `content_type="x"` is the header content-type."""
    lines = [f"HTTP/1.1 {status}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {len(body)}"] if length else []
    return "\r\n".join([*lines, "", ""]).encode() + body
