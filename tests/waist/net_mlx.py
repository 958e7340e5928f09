"""A small model on MLX; `net_torch` is its twin."""

import mlx.core as mx
import mlx.nn as nn


class Block(nn.Module):
    def __init__(self, width, hidden, dropout):
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def __call__(self, x):
        return x + self.q(x) * mx.sigmoid(self.k(x)) + self.down(self.dropout(mx.tanh(self.up(x))))


class Net(nn.Module):
    def __init__(self, codes, places, width, hidden, layers, dropout):
        super().__init__()
        self.tokens = nn.Embedding(codes, width)
        self.places = nn.Embedding(places, width)
        self.layers = [Block(width, hidden, dropout) for _ in range(layers)]
        self.head = nn.Linear(width, codes, bias=False)

    def hidden(self, ids):
        x = self.tokens(ids) + self.places(mx.arange(ids.shape[1]) % self.places.weight.shape[0])
        for layer in self.layers:
            x = layer(x)
        return x

    def __call__(self, ids):
        return self.head(self.hidden(ids))


def terms(model, batch):
    hidden = model.hidden(batch["ids"])
    entropy = nn.losses.cross_entropy(model.head(hidden), batch["targets"])
    size = hidden.square().mean(axis=-1)
    return {"next": (entropy * batch["mask"]).sum(), "size": (size * batch["sized"]).sum()}
