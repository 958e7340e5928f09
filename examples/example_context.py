"""Answer in a conversation: the voice of each speaker is taken from what they said before.

python examples/example_context.py question.wav "How are you?" answer.wav "Fine, and you?" output.wav 1b
"""

import numpy as np

from backends import cli
from backends.data import audio
from csm_mlx import CSM, Segment, generate


def main(
    first: str, first_text: str, second: str, second_text: str, output: str = "output.wav", base: str = "1b"
) -> None:
    model = CSM.from_pretrained(base)
    context = [
        Segment(speaker=0, text=first_text, audio_path=first),
        Segment(speaker=1, text=second_text, audio_path=second),
    ]
    sound = generate(model, text="I am well, thank you.", speaker=0, context=context, max_audio_length_ms=5000, seed=0)
    audio.write(output, np.asarray(sound), 24000)
    print(f"wrote {output}")


if __name__ == "__main__":
    cli.script(main)
