import pytest
import torch
from hypothesis import settings

settings.register_profile("busy machine", deadline=None)  # what is slow at times is not wrong
settings.load_profile("busy machine")


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small wait longer for a second thread than they compute: on two busy cores, 20 times longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
