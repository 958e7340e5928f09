"""The LSTM of EnCodec, in primitives that every MLX device has. Arrays are (B, T, D).

Weights are PyTorch's: gates in the order input, forget, cell, output, and two biases, which are added. Both are kept,
so that training changes them as it does in PyTorch.
"""

import mlx.core as mx
import mlx.nn as nn

State = dict[str, mx.array]


class LSTMLayer(nn.Module):
    """One layer: D in, D out."""

    def __init__(self, width: int):
        super().__init__()
        bound = width**-0.5
        self.weight_ih = mx.random.uniform(-bound, bound, (4 * width, width))
        self.weight_hh = mx.random.uniform(-bound, bound, (4 * width, width))
        self.bias_ih = mx.random.uniform(-bound, bound, (4 * width,))
        self.bias_hh = mx.random.uniform(-bound, bound, (4 * width,))

    def __call__(self, x: mx.array, state: State | None = None, key: str = "") -> mx.array:
        """With `state`, go on from where the stream's last chunk ended."""
        B, T, D = x.shape
        start = mx.zeros((B, D), x.dtype)
        hidden, cell = (start, start) if state is None else (state.get(f"{key}.h", start), state.get(f"{key}.c", start))
        inputs = mx.addmm(self.bias_ih + self.bias_hh, x, self.weight_ih.T)
        recurrent, outputs = self.weight_hh.T, []
        for t in range(T):
            i, f, g, o = mx.split(mx.addmm(inputs[:, t], hidden, recurrent), 4, axis=-1)
            cell = mx.sigmoid(f) * cell + mx.sigmoid(i) * mx.tanh(g)
            hidden = mx.sigmoid(o) * mx.tanh(cell)
            outputs.append(hidden)
        if state is not None:
            state[f"{key}.h"], state[f"{key}.c"] = hidden, cell
        return mx.stack(outputs, axis=1)


class SkipLSTM(nn.Module):
    """x plus what a stack of layers makes of it."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.lstm = [LSTMLayer(width) for _ in range(layers)]

    def __call__(self, x: mx.array, state: State | None = None, key: str = "") -> mx.array:
        y = x
        for index, layer in enumerate(self.lstm):
            y = layer(y, state, f"{key}.lstm.{index}")
        return x + y
