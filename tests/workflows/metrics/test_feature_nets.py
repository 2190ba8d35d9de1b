"""Where the weights of FID's Inception-v3 come from: a file, or over HTTP, once."""

import hashlib
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from given_inception import as_file, random_inception

from workflows.metrics import feature_nets
from workflows.metrics.feature_nets import inception_weights
from workflows.storage import Environment


@pytest.fixture(scope="module")
def weights():
    return as_file(random_inception())


@pytest.fixture
def environment(tmp_path):
    return Environment(storage=str(tmp_path / "runs"))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@contextmanager
def serving(folder):
    """A real server of a folder's files; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_they_are_fetched_once_and_kept(weights, environment, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_nets, "INCEPTION_SHA256", hashlib.sha256(weights).hexdigest()[:8])
    (tmp_path / "weights.pth").write_bytes(weights)
    with serving(tmp_path) as url:
        assert inception_weights(environment, f"{url}/weights.pth") == weights

    assert inception_weights(environment, f"{url}/weights.pth") == weights  # the server has gone
    assert inception_weights(environment, "") == weights


def test_another_file_than_fids_is_refused_and_not_kept(weights, environment, tmp_path):
    (tmp_path / "weights.pth").write_bytes(weights)
    with serving(tmp_path) as url, pytest.raises(ValueError, match="sha256 does not begin with 6726825d"):
        inception_weights(environment, f"{url}/weights.pth")

    assert not environment.features("inception").names()


def test_where_the_network_does_not_lead_there_one_line_says_what_to_do(environment):
    with serving("/nowhere") as url:
        pass
    with pytest.raises(ValueError, match=r"cannot be fetched \(.*\): download .* give --inception-weights FILE$"):
        inception_weights(environment, f"{url}/weights.pth")


def test_a_file_is_read_where_it_is(weights, environment, tmp_path):
    (tmp_path / "mine.pth").write_bytes(weights)

    assert inception_weights(environment, str(tmp_path / "mine.pth")) == weights


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_a_file_that_is_no_weights_is_refused_by_its_name(content, environment, tmp_path):
    if content is not None:
        (tmp_path / "mine.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.pth"):
        inception_weights(environment, str(tmp_path / "mine.pth"))


@pytest.mark.parametrize("module", ["draw_part", "metrics.features", "metrics.neighbours", "metrics.bits"])
def test_what_rays_workers_import_knows_nothing_of_mlflow(module):
    script = f"import sys, workflows.{module}; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
