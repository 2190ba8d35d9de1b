import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from workflows.cluster.machine import keep_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    keep_memory()
torch.set_num_threads(1)
for _ in range(2):
    before = faults()
    for megabytes in (8, 40, 24, 100) * 5:
        torch.ones(megabytes << 18)
print(faults() - before)
"""


def faults(how):
    """Page faults of making and freeing tensors whose like there were before, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_kept_memory_is_not_asked_for_again():
    assert faults("kept") < 100
    assert faults("given back") > 1000
