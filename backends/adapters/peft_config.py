"""PEFT's adapter_config.json: written so that it means exactly our adapter, read only where we can honour it.

Source: peft/tuners/lora/config.py for the options, peft/tuners/tuners_utils.py for how names match.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from backends.base import AdapterInfo, LoRASpec
from backends.errors import InputError

_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")  # the others change the base weights
# Honoured, or seen in the tensors, or only about how the adapter was made. Any other option must be off.
_UNDERSTOOD = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias", "init_lora_weights",
               "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
               "base_model_name_or_path", "auto_mapping", "inference_mode", "peft_version", "revision", "task_type",
               "megatron_core", "qalora_group_size", "eva_config"}  # fmt: skip


def to_config(info: AdapterInfo, targets: Sequence[str], whole: Sequence[str], others: Iterable[str]) -> dict[str, Any]:
    """The config of an adapter on their modules `targets`, with the modules `whole` trained whole.

    `others` are the model's other modules, which must not match. Raises InputError where PEFT would match them.
    """
    others = set(others) - set(targets) - set(whole)
    for name in whole:  # PEFT saves every module whose name ends so, and adapts none in it
        if also := [other for other in others if other.endswith(name)]:
            raise InputError(f"{name}: PEFT's modules_to_save would take {also[0]} with it: do not train it whole")
    spec = info.spec
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "base_model_name_or_path": info.base or None,
        "r": spec.rank,
        "lora_alpha": int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha,
        "lora_dropout": spec.dropout,
        "use_rslora": spec.use_rslora,
        "use_dora": spec.use_dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": _exactly(targets, others),
        "modules_to_save": list(whole) or None,
    }


def to_spec(config: Mapping[str, Any], source: str) -> LoRASpec:
    """The adapter of a config. Raises InputError that names an option which we would have to ignore."""
    if config.get("peft_type") != "LORA":
        raise InputError(f"{source}: peft_type is {config.get('peft_type')!r}; only LORA can be read")
    if config.get("bias", "none") != "none":
        raise InputError(f"{source}: bias is {config['bias']!r}; only adapters that leave biases alone can be read")
    if config.get("init_lora_weights", True) not in _PLAIN_INITS:
        raise InputError(
            f"{source}: init_lora_weights is {config['init_lora_weights']!r}, which changes the base weights: convert "
            "the adapter with PEFT's path_initial_model_for_weight_conversion first"
        )
    for name, value in config.items():
        if name not in _UNDERSTOOD and value:
            raise InputError(f"{source}: {name} is {value!r}, which is not supported here")
    try:
        return LoRASpec(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            dropout=float(config.get("lora_dropout", 0.0)),
            use_rslora=bool(config.get("use_rslora", False)),
            use_dora=bool(config.get("use_dora", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source}: expected the numbers r and lora_alpha ({error!r})") from error


def _exactly(targets: Sequence[str], others: Iterable[str]) -> list[str] | str:
    """The names as a list, whose items PEFT takes as endings too; as a regular expression where another ends so."""
    endings = tuple(f".{target}" for target in targets)
    if any(other.endswith(endings) for other in others):
        return "|".join(map(re.escape, targets))
    return list(targets)
