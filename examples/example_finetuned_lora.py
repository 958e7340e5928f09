"""Speak with a LoRA-fine-tuned model.

python examples/example_finetuned_lora.py lora_finetune_output/lora_ckpt_epoch_5.safetensors "Your text here" 0
"""

from pathlib import Path

import numpy as np

from backends import cli
from backends.adapters.files import read_info
from backends.data import audio
from csm_mlx import CSM, generate
from csm_mlx.finetune.lora import load_adapter, merge_lora_weights


def main(path: str, text: str = "This is my fine-tuned voice.", speaker: int = 0, output: str = "output.wav") -> None:
    model = CSM.from_pretrained(read_info(Path(path)).base or "1b")
    model = merge_lora_weights(load_adapter(model, path))
    sound = generate(model, text=text, speaker=speaker, context=[], max_audio_length_ms=5000, seed=0)
    audio.write(output, np.asarray(sound), 24000)
    print(f"wrote {output}")


if __name__ == "__main__":
    cli.script(main)
