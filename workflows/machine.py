"""How a worker's machine fares, under the names that MLflow shows as system metrics."""

from __future__ import annotations

import psutil
import torch

MB = 1 << 20


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
