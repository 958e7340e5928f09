"""From the host's memory to a device, queued behind what runs there."""

import torch


def sent(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device: from memory that is not pinned CUDA may wait for what was queued before."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
