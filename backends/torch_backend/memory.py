"""What PyTorch holds and what the machine offers, in bytes."""

import os
import resource
import sys

import torch

from backends.base import Memory


def memory(device: torch.device) -> Memory:
    """On CUDA the allocator's peak and active bytes; on the CPU, where PyTorch keeps no count, the resident peak."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return Memory(torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device), total)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Memory(peak, peak, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def reset_peak_memory(device: torch.device) -> None:
    """Count the peak from now on, where the device is a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
