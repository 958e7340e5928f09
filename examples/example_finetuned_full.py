"""Speak with a fully fine-tuned model; the last argument is the base it was trained from.

python examples/example_finetuned_full.py finetune_output/ckpt_epoch_5.safetensors "Your text here" 0 output.wav 1b
"""

import audiofile
import numpy as np

from backends import cli
from csm_mlx import CSM, csm_1b, csm_tiny, generate


def main(
    path: str,
    text: str = "This is my fine-tuned voice.",
    speaker: int = 0,
    output: str = "output.wav",
    base: str = "1b",
) -> None:
    model = CSM(csm_tiny() if base == "tiny" else csm_1b())
    model.load_weights(path)
    audio = generate(model, text=text, speaker=speaker, context=[], max_audio_length_ms=5000, seed=0)
    audiofile.write(output, np.asarray(audio), 24000)
    print(f"wrote {output}")


if __name__ == "__main__":
    cli.script(main)
