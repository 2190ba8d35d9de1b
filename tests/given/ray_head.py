"""A head of a Ray cluster that is none: it says what a test wants it to say of jobs."""

import json
import platform
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ray


def job(job_id, status, **others):
    """A job as Ray's Jobs API shows it."""
    return {"type": "SUBMISSION", "submission_id": job_id, "status": status, **{"entrypoint": ""} | others}


NODES = "GET /nodes?view=summary&nocache=1"


def nodes_with(session):
    """The answer of a head whose session is in this folder."""
    raylet = {"isHeadNode": True, "sessionDir": str(session)}
    return 200, {"data": {"summary": [{"raylet": raylet}]}}


class Head:
    """What it answers: `answers["GET /api/jobs/"]` is (status, body), or a list of such, the last of which stays."""

    def __init__(self, address):
        self.address, self.asked = address, []
        metadata = {"rayVersion": ray.__version__, "pythonVersion": platform.python_version()}
        self.answers = {
            "GET /api/version": (200, {"ray_version": ray.__version__, "session_name": "session_of_elsewhere"}),
            "GET /api/v0/cluster_metadata": (200, {"data": metadata}),
            NODES: nodes_with("/nowhere/session_of_elsewhere"),
            "GET /api/jobs/": (200, []),
        }

    def answer(self, what):
        self.asked.append(what)
        if what.startswith("GET /api/packages/"):  # whatever is to be sent along is there
            return 200, ""
        found = self.answers.get(what, (404, f"there is no {what}"))
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        return found


@contextmanager
def open_head():
    """Such a head, on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = head.answer(f"{self.command} {self.path}")
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = answer  # noqa: N815 - as http.server calls them

        def log_message(self, *words):
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        head = Head(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield head
        server.shutdown()
        thread.join()
