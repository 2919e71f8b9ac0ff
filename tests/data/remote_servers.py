"""An HTTP server that can misbehave, and a TCP proxy that cuts a connection."""

import base64
import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer:
    """Serves ``files`` on 127.0.0.1, by ranges, and writes down what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.log: list[tuple[str, int, int]] = []
        """(name, first byte, bytes sent) of each GET of a shard."""
        self.cut: Callable[[str, int], int | None] = lambda name, start: None
        """After how many bytes the connection drops."""
        self.before: Callable[[str, int], None] = lambda name, start: None
        """Called before a shard's bytes are sent."""
        self.delay_s = 0.0
        self.ranges = True
        self.lengths = True
        self.login: str | None = None
        self.status: dict[str, int] = {}

    def requests(self) -> list[tuple[str, int]]:
        """Name and first byte, sorted."""
        return sorted((name, start) for name, start, _ in self.log)

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Give the address of the folder."""
        server = self

        class Handler(_Handler):
            owner = server

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/set"
        finally:
            http.shutdown()
            http.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: RangeServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        owner, name = self.owner, self.path.rpartition("/")[2]
        data = owner.files.get(name)
        if owner.login is not None:
            expected = "Basic " + base64.b64encode(owner.login.encode()).decode()
            if self.headers.get("Authorization") != expected:
                return self._refuse(401)
        if name in owner.status:
            return self._refuse(owner.status[name])
        if data is None:
            return self._refuse(404)
        first, last = 0, len(data) - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and owner.ranges:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        if owner.lengths:
            self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if not body:
            return None
        is_shard = name.endswith(".h5")
        if is_shard:
            owner.before(name, first)
            time.sleep(owner.delay_s)
        cut = owner.cut(name, first) if is_shard else None
        sent = data[first : last + 1][:cut]
        if is_shard:
            owner.log.append((name, first, len(sent)))
        with contextlib.suppress(OSError):  # the client may be dead
            self.wfile.write(sent)
            if cut is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
        return None

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextlib.contextmanager
def cutting_proxy(
    target: tuple[str, int], budgets: list[int], uploads: list[int] | None = None
) -> Iterator[int]:
    """Forward TCP; cut as many connections as there are budgets, each after so many bytes down.

    A budget counts once a connection has brought 64 KiB, so that only large answers are cut.
    `uploads` are budgets of what a connection takes up.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def forward(source: socket.socket, sink: socket.socket, budgets: list[int]) -> None:
        total, budget = 0, None
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                total += len(data)
                if total > 65536 and budget is None and budgets:
                    budget = budgets.pop(0)
                if budget is not None and total > budget:
                    break
                sink.sendall(data)
            else:
                return
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(target)
                pairs = (server, client, budgets), (client, server, uploads or [])
                for pair in pairs:
                    threading.Thread(target=forward, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
