"""EnCodec on MLX against transformers' EncodecModel with shared random weights."""

import mlx.core as mx
import musicgen_oracle as oracle
import numpy as np
import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from backends.layouts import encodec_settings
from backends.mlx_backend.lstm import SkipLSTM
from backends.mlx_backend.parameters import load
from musicgen_mlx import encodec
from musicgen_mlx.companions import load_codec
from musicgen_mlx.encodec import DecodeStream

HOP = 640
KINDS = {
    "reflect": {},
    "constant": {"pad_mode": "constant"},
    "stereo": {"audio_channels": 2},
    "odd": {
        "upsampling_ratios": [5, 3],
        "num_residual_layers": 2,
        "num_lstm_layers": 1,
        "kernel_size": 5,
        "target_bandwidths": [51.3],
    },
}


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def snr_db(reference: np.ndarray, value: np.ndarray) -> float:
    assert reference.shape == value.shape
    error = ((reference - value) ** 2).sum()
    return 10 * np.log10((reference**2).sum() / max(error, 1e-30))


def upstream(theirs: EncodecModel, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes (B, K, T) and what they decode to, in our axes."""
    given = torch.from_numpy(audio if audio.ndim == 2 else audio.swapaxes(1, 2))
    with torch.inference_mode():
        codes = theirs.encode(given[:, None] if audio.ndim == 2 else given).audio_codes
        decoded = theirs.decode(codes, [None]).audio_values.numpy()
    return codes[0].numpy(), decoded[:, 0] if audio.ndim == 2 else decoded.swapaxes(1, 2)


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encodec")
    theirs = oracle.encodec(folder, **request.param)
    return theirs, load_codec(folder)


@pytest.mark.parametrize("samples", [HOP * 8, HOP * 8 + 123, 300, 7], ids=["whole", "ragged", "short", "tiny"])
def test_codes_and_audio_equal_transformers(pair, samples):
    theirs, ours = pair
    shape = (2, samples) if ours.config.channels == 1 else (2, samples, 2)
    audio = noise(shape)
    codes, decoded = upstream(theirs, audio)
    own = ours.encode(mx.array(audio))
    assert own.shape == (2, ours.config.codebooks, -(-samples // ours.config.frame_samples))
    np.testing.assert_array_equal(np.array(own), codes)
    assert snr_db(decoded, np.array(ours.decode(mx.array(codes)))) >= 90


@pytest.mark.slow
def test_the_codec_at_full_size(tmp_path):
    """Three seconds with 4 codebooks of 2048 and LSTMs of 1024."""
    config = EncodecConfig(**encodec_settings.to_transformers(encodec_settings.PUBLISHED))
    theirs = oracle.saved(EncodecModel(config), tmp_path)
    ours, audio = load_codec(tmp_path), noise((1, 3 * 32_000))
    codes, decoded = upstream(theirs, audio)
    assert (np.array(ours.encode(mx.array(audio))) == codes).mean() >= 0.999
    assert snr_db(decoded, np.array(ours.decode(mx.array(codes)))) >= 90


def test_padding_is_read_from_the_configuration(tmp_path):
    """The same weights with the other padding are another codec at the edges."""
    theirs = oracle.encodec(tmp_path / "reflect")
    theirs.config.pad_mode = "constant"
    theirs.save_pretrained(tmp_path / "constant")
    audio = mx.array(noise((1, HOP * 10)))
    reflect, constant = (load_codec(tmp_path / name) for name in ("reflect", "constant"))
    differs = np.array(reflect.decode(reflect.encode(audio)) != constant.decode(reflect.encode(audio)))[0]
    assert differs[:HOP].any()
    assert (constant.config.pad, reflect.config.pad) == ("constant", "reflect")


def test_long_audio_in_pieces_equals_one_pass(pair, monkeypatch):
    _, ours = pair
    hop, channels = ours.config.frame_samples, ours.config.channels
    audio = mx.array(noise((1, hop * 50 + 17) if channels == 1 else (1, hop * 50 + 17, 2)))
    codes, sound = ours.encode(audio), ours.decode(ours.encode(audio))
    monkeypatch.setattr(encodec, "CHUNK_S", 9 / ours.config.frame_hz)
    np.testing.assert_array_equal(np.array(ours.encode(audio)), np.array(codes))
    assert mx.abs(ours.decode(codes) - sound).max().item() <= 1e-4


@pytest.mark.parametrize("more", [1, 17, 100, 639])
def test_a_piece_may_end_with_little_of_a_frame(pair, monkeypatch, more):
    """The last frame, of which `more` samples are there, would be a piece by itself."""
    _, ours = pair
    hop, channels = ours.config.frame_samples, ours.config.channels
    samples = 45 * hop + min(more, hop - 1)
    audio = mx.array(noise((1, samples) if channels == 1 else (1, samples, 2)))
    whole = ours.latents(audio)
    monkeypatch.setattr(encodec, "CHUNK_S", 9 / ours.config.frame_hz)
    assert mx.abs(ours.latents(audio) - whole).max().item() <= 1e-4


@pytest.mark.parametrize("cuts", [(1,) * 24, (3, 1, 12, 2, 6), (24,)], ids=["single", "uneven", "whole"])
def test_streamed_audio_equals_whole(pair, cuts):
    _, ours = pair
    codes = mx.array(np.random.default_rng(0).integers(0, oracle.ENTRIES, (2, ours.config.codebooks, sum(cuts))))
    stream, pieces, start = DecodeStream(ours), [], 0
    for count in cuts:
        pieces.append(stream.push(codes[:, :, start : start + count]))
        start += count
        got = sum(piece.shape[1] for piece in pieces if piece is not None)
        assert got == max(0, start - stream.delay_frames) * ours.config.frame_samples
    pieces.append(stream.finish())
    whole = np.array(ours.decode(codes))
    joined = np.concatenate([np.array(piece) for piece in pieces if piece is not None], axis=1)
    assert joined.shape == whole.shape
    assert np.abs(joined - whole).max() <= 1e-4


def test_fewer_codebooks_decode(pair):
    theirs, ours = pair
    codes = np.random.default_rng(1).integers(0, oracle.ENTRIES, (1, 2, 6))
    with torch.inference_mode():
        expected = theirs.decode(torch.from_numpy(codes)[None], [None]).audio_values.numpy().swapaxes(1, 2)
    got = np.array(ours.decode(mx.array(codes)))
    assert snr_db(expected if ours.config.channels == 2 else expected[..., 0], got) >= 90


def test_gradients_reach_the_encoder(pair):
    """Training goes straight through the quantiser, which upstream's EnCodec does not do."""
    import mlx.nn as nn

    _, ours = pair
    ours.train()
    ours.unfreeze()
    audio = mx.array(noise((1, HOP * 3) if ours.config.channels == 1 else (1, HOP * 3, 2)))

    def loss(model):
        active = mx.full((1,), ours.config.codebooks)
        latents, _, commitment = model.quantize(model.latents(audio), active, mx.array([False]))
        return (model.synthesise(latents)[:, : audio.shape[1]] - audio).square().mean() + commitment

    gradients = nn.value_and_grad(ours, loss)(ours)[1]
    ours.freeze()
    ours.eval()
    assert mx.abs(gradients["encoder"]["layers"][0]["weight_v"]).max().item() > 0
    assert mx.abs(gradients["decoder"]["layers"][0]["weight_g"]).max().item() > 0


def test_the_lstm_and_its_gradients_equal_pytorch():
    torch.manual_seed(0)
    theirs, ours = torch.nn.LSTM(6, 6, 2, batch_first=True), SkipLSTM(6, 2)
    names = {f"lstm.{n.split('_l')[1]}.{n.split('_l')[0]}": n for n, _ in theirs.named_parameters()}
    values = dict(theirs.named_parameters())
    load(ours, {name: mx.array(values[their].detach().numpy()) for name, their in names.items()})
    x = noise((3, 11, 6))
    given = torch.from_numpy(x).requires_grad_()
    expected = theirs(given)[0] + given
    expected.square().sum().backward()
    np.testing.assert_allclose(np.array(ours(mx.array(x))), expected.detach().numpy(), atol=1e-6)

    def loss(parameters):
        ours.update(parameters)
        return ours(mx.array(x)).square().sum()

    gradients = mx.grad(loss)(ours.trainable_parameters())
    for name, their in names.items():
        _, layer, part = name.split(".")
        np.testing.assert_allclose(
            np.array(gradients["lstm"][int(layer)][part]), values[their].grad.numpy(), atol=1e-4, err_msg=name
        )
