"""A worker's machine: how it fares, under the names that MLflow shows as system metrics, and its memory."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import psutil
import torch

MB = 1 << 20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""numbers of mallopt(3)"""
LARGEST_KEPT = 1 << 30
"""bytes; larger blocks are the kernel's own, and go back to it"""


def machine_metrics(device: torch.device) -> dict[str, float]:
    """Percent of all CPUs since the last call, memory of the machine and of this process, and of the GPU."""
    memory, ours = psutil.virtual_memory(), psutil.Process().memory_info()
    metrics = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_megabytes": ours.rss / MB,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        metrics["system/gpu_memory_usage_percentage"] = 100 * (1 - free / total)
        metrics["system/gpu_peak_allocated_megabytes"] = torch.cuda.max_memory_allocated(device) / MB
    return metrics


def keep_memory() -> None:
    """Let this process keep the memory that it frees for its next tensors, as torch does on a GPU; with glibc only.

    Else most of what a network frees goes back to the kernel, which clears it and maps it page by page when it is asked
    for again: up to 98,000 page faults for 50 digits in 20 steps, and 16 to 18 images a second instead of 22 to 24.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
