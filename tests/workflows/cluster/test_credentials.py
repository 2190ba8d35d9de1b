import os

import pytest

from workflows.cli import WRONG_CALL, judged
from workflows.cluster.credentials import CREDENTIALS_FILE, check_no_password, load_credentials
from workflows.cluster.on_worker import on_worker


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv(CREDENTIALS_FILE, str(tmp_path / "credentials"))
    return tmp_path / "credentials"


def test_what_the_file_says_is_in_the_environment_which_has_the_last_word(file, monkeypatch):
    monkeypatch.setenv("DDPM_TEST_KNOWN", "mine")
    monkeypatch.setenv("DDPM_TEST_SECRET", "")
    monkeypatch.delenv("DDPM_TEST_SECRET")
    file.write_text("# of the store\n\nDDPM_TEST_SECRET=a=b c\nDDPM_TEST_KNOWN=theirs\n")
    load_credentials()

    assert os.environ["DDPM_TEST_SECRET"] == "a=b c"
    assert os.environ["DDPM_TEST_KNOWN"] == "mine"


def test_without_a_file_nothing_is_asked_for(monkeypatch):
    monkeypatch.delenv(CREDENTIALS_FILE, raising=False)
    load_credentials()


def test_a_file_that_is_not_there_is_named(file):
    with pytest.raises(ValueError, match=f"credentials must be a file that can be read where the job runs, got {file}"):
        load_credentials()


def test_a_wrong_line_is_named_by_its_number_and_not_shown(file):
    file.write_text("A_B=1\nhunter2\n")
    with pytest.raises(ValueError, match="in line 2 of") as refused:
        load_credentials()
    assert "hunter2" not in str(refused.value)


def test_a_command_with_a_wrong_file_says_so_in_one_line(file):
    code, error = judged(["champions"])

    assert code == WRONG_CALL
    assert error.startswith("credentials must be a file that can be read")
    assert "\n" not in error


def test_a_workers_function_finds_them_in_its_environment(file, monkeypatch):
    monkeypatch.setenv("DDPM_TEST_SECRET", "")
    monkeypatch.delenv("DDPM_TEST_SECRET")
    file.write_text("DDPM_TEST_SECRET=a\n")

    assert on_worker(os.environ.get)("DDPM_TEST_SECRET", "none") == "a"


@pytest.mark.parametrize("word", ["--tracking-uri=http://me:hunter2@mlflow:5000", "postgresql://me:hunter2@db/x"])
def test_a_command_that_would_show_a_password_is_refused_without_showing_it(word):
    with pytest.raises(ValueError, match="must not have a password in it") as refused:
        check_no_password(["run", word])
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("word", ["s3://bucket/a:b@c", "http://mlflow:5000", "--name=a@b", "models:/digits@champion"])
def test_an_address_without_one_is_not(word):
    check_no_password(["run", word])
