"""Golden values of the published checkpoints, where the Hub is reachable: make test-weights.

Sources: transformers' tests/models/csm/test_processing_csm.py and test_modeling_csm.py.
"""

import numpy as np
import pytest

from backends.mlx_backend.sampling import Sampler
from csm_mlx import CSM
from csm_mlx.companions import TOKENIZER, load_tokenizer
from csm_mlx.generation import FrameRun, prompt_rows

pytestmark = pytest.mark.weights


def test_llama_tokenizer_ids():
    ids = load_tokenizer(TOKENIZER).encode("This is a test sentence.", 0)
    assert ids == [128000, 58, 15, 60, 2028, 374, 264, 1296, 11914, 13, 128001]


def test_greedy_frames_of_csm_1b():
    """Without audio context: 33 frames, then the all-zero one."""
    model = CSM.from_pretrained("sesame/csm-1b", dtype="float32")
    run = FrameRun(model, Sampler(0), (), 0)
    frame = run.start(*prompt_rows(model, "The past is just a story we tell ourselves.", 0, []))
    frames = [np.array(frame)[0]]
    while frames[-1].any() and len(frames) < 40:
        frame = run.advance(frame)
        frames.append(np.array(frame)[0])
    assert len(frames) == 34
    assert frames[0][:5].tolist() == [1656, 629, 723, 1785, 206]
    assert frames[32][-3:].tolist() == [1157, 832, 480]
