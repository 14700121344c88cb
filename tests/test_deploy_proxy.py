"""The proxy before a SuperLink that only writes down what reaches it: ten calls, ever."""

import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.helpers import strangers
from tests.helpers.deployment import PROJECT, end, free_port

PULL = "/v1/fleet/pull-object"
CALLS = {
    f"/v1/fleet/{name}"
    for name in (
        "activate-node deactivate-node send-node-heartbeat pull-messages push-messages "
        "get-run get-fab push-object pull-object confirm-message-received"
    ).split()
}


class Record(BaseHTTPRequestHandler):
    """Answers everything with 200."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, dict[str, str], bytes]]
    begun: threading.Event

    def do_POST(self) -> None:
        self.begun.set()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.command, self.path, dict(self.headers), body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")  # the next test's is another server
        self.end_headers()

    do_GET = do_PUT = do_HEAD = do_POST

    def log_message(self, *_: object) -> None:
        pass


class Proxy:
    """The proxy's port, what nodes trust, and what got through."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.own_port = folder, free_port(), free_port()
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.begun = threading.Event()
        for words in (
            ("authority", "authority"),
            ("server", "authority", "certificates", "127.0.0.1"),
            ("loopback", "loopback"),
            ("loopback", "other"),
        ):
            self.script("certificates.sh", *words).wait(60)
        self.ca = folder / "certificates" / "ca.crt"

    def script(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(PROJECT / "deploy" / name), *words],
            cwd=self.folder,
            env={
                "PATH": "/usr/sbin:/usr/bin:/bin",
                "FEDMITR_CERTIFICATES": "certificates",
                "FEDMITR_HOST": "127.0.0.1",
                "FEDMITR_PORT": str(self.port),
                "FEDMITR_SUPERLINK_PORT": str(self.own_port),
            },
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    @contextmanager
    def superlink(self, pair: str) -> Iterator[None]:
        """Have something listen where the SuperLink should, with a pair of keys of its own."""
        handler = type("Handler", (Record,), {"seen": self.seen, "begun": self.begun})
        server = ThreadingHTTPServer(("127.0.0.1", self.own_port), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        keys = (self.folder / pair / f"loopback.{half}" for half in ("crt", "key"))
        context.load_cert_chain(*keys)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()

    @contextmanager
    def line(self) -> Iterator[ssl.SSLSocket]:
        context = ssl.create_default_context(cafile=str(self.ca))
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as line,
        ):
            yield line

    def ask(self, target: str, body: bytes = b"", method: str = "POST", more: str = "") -> int:
        return strangers.ask(self.port, self.ca, target, body, method, more)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    made = Proxy(tmp_path_factory.mktemp("proxy"))
    process = made.script("proxy.sh")
    try:
        for _ in range(100):
            try:
                made.ask("/")
                break
            except ConnectionError:
                assert process.poll() is None, "the proxy ended"
                time.sleep(0.1)
        yield made
    finally:
        end(process)


@pytest.fixture
def proxy(running: Proxy) -> Proxy:
    running.seen.clear()
    running.begun.clear()
    return running


def test_the_ten_calls_arrive_whole(proxy: Proxy) -> None:
    body = random.Random(0).randbytes(100_000)
    with proxy.superlink("loopback"):
        for call in sorted(CALLS):
            assert proxy.ask(call, body) == 200
    assert {seen[1] for seen in proxy.seen} == CALLS
    assert all(seen[0] == "POST" and seen[3] == body for seen in proxy.seen)


def test_nothing_else_arrives(proxy: Proxy) -> None:
    draw = random.Random(0)
    parts = "/ // .. %2e%2e %2f . ; ? # %00 %0a \\ @ % ..; %5c é v1 fleet control".split()
    parts += ["runtime", "activate-node", "start-run", "\t"]
    odd = ["/v1/" + "".join(draw.choices(parts, k=draw.randint(1, 7))) for _ in range(300)]
    odd += ["/v1/fleet/" + "".join(draw.choices(parts, k=draw.randint(1, 7))) for _ in range(300)]
    with proxy.superlink("loopback"):
        for path in [*strangers.paths(proxy.own_port), *odd]:
            if path not in CALLS:
                assert proxy.ask(path) in strangers.REFUSED, path
        for method in ("GET", "PUT", "HEAD", "DELETE", "CONNECT", "OPTIONS", "post", "TRACE"):
            assert proxy.ask(PULL, method=method) in strangers.REFUSED, method
    assert proxy.seen == []


def test_a_second_request_hides_in_no_body(proxy: Proxy) -> None:
    hidden = b"0\r\n\r\nPOST /v1/control/start-run HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with proxy.superlink("loopback"):
        proxy.ask(PULL, hidden, more="Transfer-Encoding: chunked\r\n")
        proxy.ask(PULL, hidden, more="Transfer-Encoding : chunked\r\n")
        proxy.ask(PULL, hidden, more="Transfer-Encoding: xchunked\r\n")
        proxy.ask(PULL, hidden, more="Content-Length: 0\r\n")
        proxy.ask(PULL, hidden, more="Upgrade: h2c\r\nConnection: Upgrade\r\n")
    assert {seen[1] for seen in proxy.seen} <= {PULL}


def test_no_body_waits_on_disk_or_without_its_length(proxy: Proxy) -> None:
    """Whoever reaches the port could fill the disk that holds the SuperLink's database."""
    body = random.Random(1).randbytes(2_000_000)
    head = f"POST {PULL} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    with proxy.superlink("loopback"), proxy.line() as line:
        line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:1_000_000])
        assert proxy.begun.wait(30), "the body was kept until its end"
        line.sendall(body[1_000_000:])
        assert line.recv(100).startswith(b"HTTP/1.1 200")
        with proxy.line() as other:
            other.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n".encode())
            assert other.recv(100).startswith(b"HTTP/1.1 400")
    assert [seen[3] for seen in proxy.seen] == [body]


def test_only_a_nodes_headers_arrive(proxy: Proxy) -> None:
    more = "flwr-signature: abc\r\nX-Forwarded-For: 10.9.8.7\r\nflwr-task-token: t\r\nCookie: c\r\n"
    with proxy.superlink("loopback"):
        # A second Host is no request; another name than the server's is the node's business.
        assert proxy.ask(PULL, more=f"Host: x/v1/control/start-run?\r\n{more}") == 400
        assert proxy.ask(f"https://evil.example.org{PULL}", more=more) == 200
    ((_, path, headers, _),) = proxy.seen
    assert path == PULL and headers["Host"] == "localhost"
    assert headers["flwr-signature"] == "abc" and headers["X-Forwarded-For"] == "127.0.0.1"
    assert set(headers) <= {
        *("Host", "Content-Type", "Content-Length", "Accept", "X-Forwarded-For"),
        "flwr-signature",
    }


def test_who_takes_the_superlinks_port_gets_nothing(proxy: Proxy) -> None:
    with proxy.superlink("other"):
        assert proxy.ask(PULL, b"an upload") == 502
    assert proxy.seen == []
    assert proxy.ask(PULL) == 502  # nobody there: a node tries again
