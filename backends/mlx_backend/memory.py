"""What MLX holds and what the machine offers, in bytes."""

import os

import mlx.core as mx

from backends.base import Memory


def memory() -> Memory:
    """Peak and active bytes of MLX arrays; the limit is Metal's recommended working set, else the machine's memory."""
    limit = mx.device_info().get("max_recommended_working_set_size") or _physical_bytes()
    return Memory(mx.get_peak_memory(), mx.get_active_memory(), int(limit))


def reset_peak_memory() -> None:
    """Count the peak from now on."""
    mx.reset_peak_memory()


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
