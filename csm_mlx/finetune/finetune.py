"""Fine-tune all of CSM's weights.

python -m csm_mlx.finetune.finetune --data-path dataset.json --output-dir finetune_output
"""

import json
from pathlib import Path

from backends import cli, get
from backends.layouts.files import CONFIG_KEY
from backends.mlx_backend.saving import save
from csm_mlx.finetune.options import FullOptions
from csm_mlx.finetune.run import finetune, load_model
from csm_mlx.load import load_file
from csm_mlx.model import CSM


def main(options: FullOptions) -> None:
    """Train the model, or the parts that are not frozen, and write ckpt_*.safetensors."""
    model = load_model(options, trains_whole=True)
    backend = get("mlx")
    frozen = tuple(f"{stack}." for stack in _frozen_stacks(options))
    backend.train_only(model, lambda name: not name.startswith(frozen) if frozen else True)
    if options.resume_from is not None and options.resume_from.is_file():
        dtype = model.dtype
        load_file(model, options.resume_from)
        model.set_dtype(dtype)  # not the file's: bfloat16 would round small updates away

    def export(live: CSM, directory: Path, label: str) -> Path:
        path = directory / f"ckpt_{label}.safetensors"
        return save(path, live, {CONFIG_KEY: json.dumps(live.config.to_json())})

    finetune(options, model, export, title=f"CSM fine-tuning on {options.data_path.name}")


def _frozen_stacks(options: FullOptions) -> list[str]:
    return ["backbone"] * options.freeze_backbone + ["decoder"] * options.freeze_decoder


if __name__ == "__main__":
    cli.run(main, FullOptions)
