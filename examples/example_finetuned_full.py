"""Speak with a fully fine-tuned model.

python examples/example_finetuned_full.py finetune_output/ckpt_epoch_5.safetensors "Your text here" 0 output.wav

The file holds its model's configuration; for one that does not, give the base that it was trained from (1b, a directory
or a Hub id) as the last argument.
"""

import numpy as np

from backends import cli
from backends.data import audio
from csm_mlx import CSM, generate


def main(
    path: str,
    text: str = "This is my fine-tuned voice.",
    speaker: int = 0,
    output: str = "output.wav",
    base: str = "",
) -> None:
    model = CSM.from_pretrained(base, weights=path) if base else CSM.from_pretrained(path)
    sound = generate(model, text=text, speaker=speaker, context=[], max_audio_length_ms=5000, seed=0)
    audio.write(output, np.asarray(sound), 24000)
    print(f"wrote {output}")


if __name__ == "__main__":
    cli.script(main)
