"""What a cluster answers that cannot, or will not: one line each, and no word about a job that it says nothing of."""

import pytest
from ray_head import NODES, job, nodes_with, open_head

from workflows.cli import FAILED, judged
from workflows.cluster.client import is_here, open_client
from workflows.cluster.jobs import follow
from workflows.storage import JobFailed

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None:DeprecationWarning")  # of Ray's own client
ID = "run-1-a1"
GET_JOB, GET_LOG = f"GET /api/jobs/{ID}", f"GET /api/jobs/{ID}/logs"
TRACEBACK = "Traceback (most recent call last):\n  File …\nRuntimeError: the agent of that node has gone\n"
PAGE = "<html>\n<head><title>502 Bad Gateway</title></head>\n</html>\n"


@pytest.fixture
def head():
    with open_head() as head:
        yield head


@pytest.mark.parametrize(
    ("name", "is_there", "found"),
    [
        ("session_of_elsewhere", True, True),
        ("session_of_elsewhere", False, False),
        ("session_of_another", True, False),
    ],
)
def test_a_head_is_on_this_machine_if_the_folder_of_its_session_is(head, tmp_path, name, is_there, found):
    if is_there:
        (tmp_path / name).mkdir()
    head.answers[NODES] = [(200, {"data": {"summary": []}}), nodes_with(tmp_path / name)]

    assert is_here(open_client(head.address)) is found


def test_a_head_that_does_not_tell_of_its_nodes_is_elsewhere(head):
    head.answers[NODES] = (500, "no")

    assert not is_here(open_client(head.address))


def test_a_head_that_comes_back_without_the_job_ends_the_following_with_a_line(head):
    head.answers[GET_JOB] = [(200, job(ID, "RUNNING")), (404, f"Job {ID} does not exist")]
    with pytest.raises(JobFailed, match=f"the Ray cluster does not know job {ID} any more") as failed:
        follow(open_client(head.address), ID)

    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("answer", [(404, "there is no log"), (500, TRACEBACK)])
def test_a_log_that_is_not_to_be_had_says_nothing_about_the_job(head, answer):
    head.answers |= {GET_JOB: (200, job(ID, "SUCCEEDED")), GET_LOG: answer}

    assert follow(open_client(head.address), ID, [0.01]) == ""


def test_a_job_that_failed_has_failed_without_a_log_too(head):
    head.answers |= {GET_JOB: (200, job(ID, "FAILED")), GET_LOG: (500, TRACEBACK)}
    with pytest.raises(JobFailed, match=f"^job {ID} ended as FAILED; its log is not to be had$"):
        follow(open_client(head.address), ID, [0.01])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, TRACEBACK), "answered 500: RuntimeError: the agent of that node has gone"),
        ((502, PAGE), "answered 502: Bad Gateway"),
        ((400, "no"), "answered 400: no"),
    ],
)
@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["jobs", "list"], "GET /api/jobs/"),
        (["jobs", "status", ID], GET_JOB),
        (["jobs", "logs", ID], GET_LOG),
        (["jobs", "stop", ID], f"POST /api/jobs/{ID}/stop"),
        (["submit"], "POST /api/jobs/"),
    ],
)
def test_a_refusal_is_one_line(head, words, asked, answer, said):
    head.answers |= {GET_JOB: (200, job(ID, "RUNNING")), asked: answer}
    command = ["--", "config", "smoke", "--storage", "/anywhere"] if words == ["submit"] else []
    code, error = judged([*words, "--address", head.address, *command])

    assert code == FAILED
    assert error == f"the Ray cluster at {head.address} {said}"
