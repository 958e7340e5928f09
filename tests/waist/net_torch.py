"""A small model on PyTorch; `net_mlx` is its twin."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, hidden, dropout):
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return x + self.q(x) * torch.sigmoid(self.k(x)) + self.down(self.dropout(torch.tanh(self.up(x))))


class Net(nn.Module):
    def __init__(self, codes, places, width, hidden, layers, dropout):
        super().__init__()
        self.tokens = nn.Embedding(codes, width)
        self.places = nn.Embedding(places, width)
        self.layers = nn.ModuleList([Block(width, hidden, dropout) for _ in range(layers)])
        self.head = nn.Linear(width, codes, bias=False)

    def hidden(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]) % self.places.num_embeddings)
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, ids):
        return self.head(self.hidden(ids))


def terms(model, batch):
    hidden = model.hidden(batch["ids"])
    entropy = F.cross_entropy(model.head(hidden).transpose(1, 2), batch["targets"], reduction="none")
    size = hidden.square().mean(dim=-1)
    return {"next": (entropy * batch["mask"]).sum(), "size": (size * batch["sized"]).sum()}
