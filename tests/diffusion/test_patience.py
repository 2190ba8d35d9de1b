import pytest

from diffusion.patience import TRY_AGAIN_AFTER_S, patiently


class Storage:
    def __init__(self, failures, error=OSError):
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error("away")
        return "here"


def waits_into(waited):
    return lambda seconds: waited.append(seconds)


def test_a_call_that_fails_for_a_while_is_made_again_after_longer_and_longer():
    for failures in range(len(TRY_AGAIN_AFTER_S) + 1):
        waited = []

        assert patiently(Storage(failures), gives_up=waits_into(waited)) == "here"
        assert waited == list(TRY_AGAIN_AFTER_S[:failures])


def test_the_last_failure_is_raised_and_a_minute_has_gone_by():
    storage, waited = Storage(99), []

    with pytest.raises(OSError, match="away"):
        patiently(storage, gives_up=waits_into(waited))
    assert storage.calls == len(TRY_AGAIN_AFTER_S) + 1
    assert 60 <= sum(waited) <= 90


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, ValueError])
def test_what_waiting_does_not_mend_is_raised_at_once(error):
    storage, waited = Storage(99, error), []

    with pytest.raises(error):
        patiently(storage, gives_up=waits_into(waited))
    assert (storage.calls, waited) == (1, [])


def test_who_waits_may_say_that_it_is_no_use():
    storage = Storage(99)

    with pytest.raises(OSError, match="away"):
        patiently(storage, gives_up=lambda seconds: True)
    assert storage.calls == 1
