"""An S3 store that fails on request: a real server (moto) behind a proxy that knows every call by name.

A call is named by what it does in its bucket, "PUT out/a.tar ?partNumber=1": the same in every run, in whatever order
threads make them. Which one fails, and how, is a `Fault`; every bucket has its own, so that several runs can suffer
at once.
"""

from __future__ import annotations

import http.client
import logging
import re
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

import boto3
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import make_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from socketserver import BaseServer

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
NOT_PASSED_ON = re.compile("connection|keep-alive|transfer-encoding|content-length|date|server", re.IGNORECASE)


@dataclass(frozen=True)
class Call:
    """One request of a run: the `nth` (from 1) of that name."""

    name: str
    nth: int

    @property
    def key(self) -> str:
        """What it is about, whatever it does there."""
        return self.name.partition(" ")[2].partition(" ?")[0]

    def __str__(self) -> str:
        return f"{self.name} #{self.nth}"


@dataclass(frozen=True)
class Fault:
    """`how` is busy (503 SlowDown), drop before, drop after (the store did it; nobody hears) or cut (half a body).

    `lasting`: this call and every later one about the same key.
    """

    how: str
    call: Call
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.how}{' for ever' if self.lasting else ''} at {self.call}"


class Bucket:
    """What was asked of one bucket since it was last told to `forget`, and what is wrong with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_away = False
        """busy at every call, as long as it is so"""
        self.forget()

    def forget(self, fault: Fault | None = None) -> None:
        """Begin anew, with this fault."""
        with self._lock:
            self.fault, self.calls, self.num_faults = fault, list[Call](), 0
            self._counts: Counter[str] = Counter()
            self._fails_from_now_on = False

    def answer_to(self, name: str) -> str | None:
        """Note a call; how it is to fail."""
        with self._lock:
            self._counts[name] += 1
            call = Call(name, self._counts[name])
            self.calls.append(call)
            if self.is_away:
                self.num_faults += 1
                return "busy"
            if self.fault is None:
                return None
            if call == self.fault.call:
                self._fails_from_now_on = self.fault.lasting
            elif not (self._fails_from_now_on and call.key == self.fault.call.key):
                return None
            self.num_faults += 1
            return self.fault.how


@dataclass
class FaultyStore:
    """A store with its buckets."""

    upstream: str
    """host:port of the real server"""
    endpoint: str = ""
    """host:port of the proxy"""
    buckets: defaultdict[str, Bucket] = field(default_factory=lambda: defaultdict(Bucket))

    @property
    def client(self) -> boto3.client:
        """To look behind the proxy."""
        return boto3.client(
            "s3", endpoint_url=f"http://{self.upstream}", region_name="us-east-1", aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """What makes s3://BUCKET of any process one of these: URIs, and so fingerprints, do not name the port."""
        return {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://{self.endpoint}",
            "MLFLOW_S3_ENDPOINT_URL": f"http://{self.endpoint}",
        }


def name_of(method: str, target: str) -> tuple[str, str]:
    """The bucket and the name of a request: a listing by its prefix, a part by its number, no random upload ids."""
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    bucket, _, key = unquote(parts.path).strip("/").partition("/")
    if "list-type" in query:
        return bucket, f"LIST {query.get('prefix', '')} ?{query.get('delimiter', '')}{query.get('max-keys', '')}"
    said = [name if name in ("uploadId", "uploads", "delete") else f"{name}={value}" for name, value in query.items()]
    return bucket, f"{method} {key} ?{'&'.join(sorted(said))}".removesuffix(" ?")


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    disable_nagle_algorithm = True
    store: FaultyStore

    def log_message(self, *words: object) -> None:
        """Nothing."""

    def handle_expect_100(self) -> bool:
        """Say at once that the body may come."""
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def do(self) -> None:
        body = self._body()
        bucket, name = name_of(self.command, self.path)
        how = self.store.buckets[bucket].answer_to(name)
        if how == "drop before":
            self._hang_up()
            return
        if how == "busy":
            self._send(503, [("Content-Type", "application/xml")], BUSY)
            return
        status, headers, data, length = self._pass_on(body)
        if how == "drop after":
            self._hang_up()
            return
        self._send(status, headers, data, length, cut=how == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = do  # noqa: N815 - http.server's names

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes, str | None]:
        upstream = http.client.HTTPConnection(self.store.upstream, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
            upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = upstream.getresponse()
            passed = [(name, value) for name, value in answer.getheaders() if not NOT_PASSED_ON.fullmatch(name)]
            return answer.status, passed, answer.read(), answer.getheader("Content-Length")
        finally:
            upstream.close()

    def _send(
        self, status: int, headers: list[tuple[str, str]], data: bytes, length: str | None = None, cut: bool = False
    ) -> None:
        is_head = self.command == "HEAD"
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", (length if is_head and length else None) or str(len(data)))
        self.end_headers()
        if not is_head:
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(2)


class Server(ThreadingHTTPServer):
    """Says nothing of clients that hung up, and does not wait for those that have not."""

    request_queue_size = 1024  # with 5 of socketserver's, connections made at once take a second
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: both sides break connections here on purpose."""


@contextmanager
def open_faulty_store(address: str = "127.0.0.1") -> Iterator[FaultyStore]:
    """A healthy store without buckets at this address, for as long as the context lasts."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    real = make_server("127.0.0.1", 0, create_backend_app("s3"), threaded=True)
    with _serving(real), open_proxy(f"127.0.0.1:{real.server_port}", address) as store:
        yield store


@contextmanager
def open_proxy(upstream: str, address: str = "127.0.0.1") -> Iterator[FaultyStore]:
    """Before any HTTP server at host:port; the first part of a path is its "bucket"."""
    store = FaultyStore(upstream)
    proxy = Server((address, 0), type("StoreHandler", (Handler,), {"store": store}))
    store.endpoint = f"{address}:{proxy.server_port}"
    with _serving(proxy):
        yield store


@contextmanager
def _serving(server: BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
