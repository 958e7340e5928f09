"""Fine-tune CSM with LoRA.

python -m csm_mlx.finetune.finetune_lora --data-path dataset.json --output-dir lora_finetune_output
"""

from pathlib import Path

import mlx.core as mx

from backends import cli, get
from backends.adapters import files
from backends.errors import InputError
from csm_mlx.finetune.lora import apply_lora_to_model, load_lora_weights, trains_with_lora
from csm_mlx.finetune.options import EMBEDDINGS, LoRAOptions
from csm_mlx.finetune.run import finetune, load_model
from csm_mlx.model import CSM


def main(options: LoRAOptions) -> None:
    """Train adapters (and, if asked, the embeddings) and write lora_ckpt_*.safetensors."""
    model = load_model(options, trains_whole=False)
    apply_lora_to_model(
        model,
        rank=options.lora_rank,
        alpha=options.lora_alpha,
        target_modules=options.target_modules,
        dropout=options.dropout,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        seed=options.seed,
    )
    backend = get("mlx")
    if options.train_embeddings:
        for name in EMBEDDINGS:
            model[name].set_dtype(mx.float32)  # bfloat16 would round small updates away
    backend.train_only(model, lambda name: trains_with_lora(name, train_embeddings=options.train_embeddings))
    if options.resume_from is not None and options.resume_from.is_file():
        _start_from(model, options)

    def export(live: CSM, directory: Path, label: str) -> Path:
        base = str(options.pretrained_path or options.model)
        info = files.adapter_info(backend, live, base, live.config.to_json())
        path = directory / f"lora_ckpt_{label}.safetensors"
        files.save_adapter(backend, live, path, info)
        return path

    finetune(options, model, export, title=f"CSM LoRA on {options.data_path.name}")


def _start_from(model: CSM, options: LoRAOptions) -> None:
    """Start from an adapter file; one that holds trained embeddings needs them to go on training, or they were lost."""
    assert options.resume_from is not None
    if files.read_info(options.resume_from).trained and not options.train_embeddings:
        raise InputError(
            f"--resume-from {options.resume_from}: holds embeddings that were trained whole: add --train-embeddings"
        )
    load_lora_weights(model, options.resume_from)
    backend = get("mlx")
    trained = backend.trainable(model)  # in the file's type
    backend.load(model, {name: value.astype(mx.float32) for name, value in trained.items()}, strict=False)


if __name__ == "__main__":
    cli.run(main, LoRAOptions)
