"""A condition in the weights gives what queries over its keys and values give, on both backends and in both forms."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import torch

from musicgen_mlx import condition, torch_crossing
from musicgen_mlx.crossing import Absorbed, Attended, Crossing, crossing_of
from musicgen_mlx.forms import Columns, Rows
from musicgen_mlx.fused import fused_path
from musicgen_mlx.generation import generate_codes, predicted_steps
from musicgen_mlx.known import known_steps
from musicgen_mlx.tiny import model as tiny

WIDTH, HEADS, HEAD = 48, 3, 16
FORMS = [Columns, Rows]


def drawn(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)) / 4


def memory(mask: list[list[int]], empty: list[bool]):
    """One layer's keys and values of items with this mask; those of empty items are zeros, as a null condition's."""
    items, rows = np.shape(mask)
    said = mx.array([not nothing for nothing in empty])[:, None, None, None]
    keys, values = drawn(items, HEADS, rows, HEAD) * said, drawn(items, HEADS, rows, HEAD) * 2 * said
    return [(keys, values)], mx.array(mask, mx.bool_)[:, None, None]


def layer(form) -> tuple[dict, dict]:
    """Weights as a module has them, and as the form keeps them."""
    plain = {
        "cross_q": drawn(WIDTH, WIDTH),
        "cross_out": drawn(WIDTH, WIDTH) + 0.1,
        "norm_cross": (drawn(WIDTH) + 1, drawn(WIDTH)),
    }
    kept = {name: form.kept(plain[name]) for name in ("cross_q", "cross_out")}
    return plain, {**kept, "norm_cross": tuple(form.kept(part) for part in plain["norm_cross"])}


def plus(crossing: Crossing, form, kept: dict, x: mx.array) -> np.ndarray:
    return np.array(form.leave(crossing.plus(form.enter(x), 0, kept)))


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(
    ("mask", "empty"),
    [
        ([[1, 1, 1]], [False]),
        ([[1, 1, 1], [1, 1, 0], [1, 0, 0]], [False, False, False]),
        ([[1, 1, 0], [1, 1, 0]], [False, True]),
        ([[1, 1, 1], [1, 0, 0], [1, 1, 1], [1, 0, 0]], [False, True, True, True]),
    ],
    ids=["one", "padded", "guided", "one of two says something"],
)
def test_absorbed_is_attended(kind, mask, empty):
    form = kind(WIDTH)
    plain, kept = layer(form)
    remembered, x = memory(mask, empty), drawn(len(empty), WIDTH)
    found = crossing_of(remembered, empty, [plain], form)
    assert isinstance(found, Absorbed)
    assert found.count == 3 * empty.count(False) + any(empty)
    got, expected = plus(found, form, kept, x), plus(Attended(remembered, form), form, kept, x)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    silent = np.array(empty)
    np.testing.assert_array_equal(got[silent], np.array(x)[silent])  # nothing is added to who says nothing
    assert np.abs(got - np.array(x))[~silent].max() > 0.1


@pytest.mark.parametrize(("items", "rows", "kind"), [(1, 16, Absorbed), (1, 17, Attended), (2, 8, Absorbed), (2, 9, Attended)])  # fmt: skip
def test_a_condition_is_absorbed_while_it_has_no_more_rows_than_a_head(items, rows, kind):
    form = Rows(WIDTH)
    remembered = memory([[1] * rows] * items, [False] * items)
    assert type(crossing_of(remembered, [False] * items, [layer(form)[0]], form)) is kind


def test_who_says_nothing_attends_to_nothing():
    form = Rows(WIDTH)
    assert crossing_of(memory([[1, 1]], [True]), [True], [layer(form)[0]], form) is None


def test_a_generation_makes_its_own_crossing():
    """Two conditions on one fused path: neither leaves a trace in the other's codes."""
    model = tiny()
    said = [condition.from_texts(model, [text]) for text in ("jungle", "slow piano")]
    alone = [np.array(generate_codes(tiny(), 6, one)) for one in said]
    assert (alone[0] != alone[1]).any()
    for one, expected in zip(said * 2, alone * 2, strict=True):
        np.testing.assert_array_equal(np.array(generate_codes(model, 6, one)), expected)
    assert fused_path(model, 6) is fused_path(model, 6)


def test_generations_in_either_form_do_not_disturb_each_other(monkeypatch):
    """One guided item beside a batch of two: with MKL the first holds rows, the second columns."""
    monkeypatch.setattr("musicgen_mlx.fused.form_for", lambda rows: Rows if rows <= 2 else Columns)
    model = tiny()
    said = [condition.from_texts(model, texts) for texts in (["jungle"], ["slow piano", None])]
    laid = [known_steps(model.config, size, 8) for size in (1, 2)]
    alone = [[np.array(step) for step in predicted_steps(model, laid[n], said[n], range(n + 1))] for n in (0, 1)]
    together = zip(*(predicted_steps(model, laid[n], said[n], range(n + 1)) for n in (0, 1)), strict=True)
    for steps, *expected in zip(together, *alone, strict=True):
        for step, own in zip(steps, expected, strict=True):
            np.testing.assert_array_equal(np.array(step), own)


def test_a_long_condition_chooses_the_codes_of_the_modules(monkeypatch):
    model = tiny()
    rng = np.random.default_rng(0)
    states = mx.array(rng.standard_normal((2, 40, model.config.text_width)).astype(np.float32))
    said = condition.from_states(model, states, np.arange(40) < np.array([[40], [23]]))
    got = np.array(generate_codes(model, 6, said, seeds=[0, 1]))
    monkeypatch.setattr("musicgen_mlx.decode.fused_path", lambda *_: None)
    np.testing.assert_array_equal(got, np.array(generate_codes(model, 6, replace(said), seeds=[0, 1])))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("empty", [[False], [False, False], [False, True], [True, False, True, True]])
def test_torch_absorbed_is_attended(empty, masked):
    def host(*shape: int) -> torch.Tensor:
        return torch.from_numpy(np.array(drawn(*shape)))

    own = [[1, 1, not (masked and item)] for item in range(len(empty))]
    memory_, mask_ = memory(own, empty)
    remembered = [(torch.from_numpy(np.array(memory_[0][0])), torch.from_numpy(np.array(memory_[0][1])))]
    mask = torch.from_numpy(np.where(np.array(mask_), 0.0, -np.inf).astype(np.float32)) if masked else None
    layer = {"cross_q": host(WIDTH, WIDTH).t(), "cross_out": host(WIDTH, WIDTH + 1)[:, 1:].t() + 0.1,
             "norm_cross": (host(WIDTH) + 1, host(WIDTH))}  # fmt: skip
    x = host(len(empty), WIDTH)
    found = torch_crossing.crossing_of(remembered, mask, empty, [layer])
    assert isinstance(found, torch_crossing.Absorbed)
    got = found.plus(x, 0, layer)
    expected = torch_crossing.Attended(remembered, mask).plus(x, 0, layer)
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=2e-6)
    np.testing.assert_array_equal(got[torch.tensor(empty)].numpy(), x[torch.tensor(empty)].numpy())
    long = [tuple(part.repeat(1, 1, 6, 1) for part in remembered[0])]
    assert isinstance(torch_crossing.crossing_of(long, None, empty, [layer]), torch_crossing.Attended)
    assert torch_crossing.crossing_of(remembered, mask, [True] * len(empty), [layer]) is None
