"""Write speech to a file while it is being made, 80 ms at a time.

python examples/example_stream.py "A long story." output.wav 1b
"""

import numpy as np

from backends import cli
from backends.data.stream import write_stream
from csm_mlx import CSM, stream_generate


def main(text: str, output: str = "output.wav", base: str = "1b") -> None:
    model = CSM.from_pretrained(base)
    chunks = stream_generate(model, text=text, speaker=0, context=[], max_audio_length_ms=5000, seed=0)
    write_stream(output, (np.asarray(chunk) for chunk in chunks), 24000)
    print(f"wrote {output}")


if __name__ == "__main__":
    cli.script(main)
