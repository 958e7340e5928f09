"""Real PEFT on the small PyTorch model."""

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from toy import Side

TORCH = Side("torch")


def config(spec, targets, **options):
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        target_modules=list(targets),
        **options,
    )


def fresh(spec, targets, seed=4, **options):
    """A PEFT model whose adapter has random values."""
    model = get_peft_model(TORCH.net(), config(spec, targets, **options)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_magnitude" in name:
                value.mul_(1 + 0.2 * torch.rand(value.shape, generator=generator))
            elif "lora_" in name or "modules_to_save" in name:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return model


def loaded(directory):
    return PeftModel.from_pretrained(TORCH.net(), str(directory)).eval()


def forward(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(ids, np.int64))).numpy()


def merged(model):
    """The weights after merge_and_unload, as NumPy."""
    return TORCH.host(model.merge_and_unload())
