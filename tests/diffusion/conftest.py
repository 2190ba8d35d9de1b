import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small wait longer for a second thread than they compute: on two busy cores, 20 times longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
