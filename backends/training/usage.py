"""How a codec's codebooks are used, for reports: entries in use, perplexity, and a picture. Framework-free."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from backends.base import Section
from backends.training.codebooks import perplexity
from backends.training.report import figure, image


def count(levels: Sequence[np.ndarray], entries: int) -> np.ndarray:
    """How often each entry occurs in each level's codes: (levels, entries)."""
    return np.stack([np.bincount(np.asarray(codes).reshape(-1), minlength=entries) for codes in levels])


def section(counts: np.ndarray, of: str) -> Section:
    """A table and a picture of counts (levels, entries); `of` says what was counted."""
    heads = ("level", "codes", "entries used", "perplexity")
    rows = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for level, (row, value) in enumerate(zip(counts, perplexity(counts), strict=True)):
        cells = (level, int(row.sum()), f"{np.count_nonzero(row)} of {row.size}", f"{value:.1f}")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    drawing = figure(8, 4)
    draw(drawing.add_subplot(), counts)
    picture = image(drawing, "Shares of each level's codes by entry")
    return Section("Codebook usage", f"<p>Counted on {of}.</p><table>{''.join(rows)}</table>{picture}")


def draw(axes: Any, counts: np.ndarray) -> None:
    """Each level's entries, most frequent first, as shares of all its codes."""
    for level, (row, value) in enumerate(zip(counts, perplexity(counts), strict=True)):
        shares = np.sort(row[row > 0])[::-1] / max(1, row.sum())
        label = f"level {level}: {shares.size} of {row.size} used, perplexity {value:.0f}"
        axes.plot(np.arange(1, shares.size + 1), shares, label=label)
    axes.set(xscale="log", yscale="log", xlabel="entries, most frequent first", ylabel="share of the codes")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")  # a fixed place: looking for the best one takes seconds with many points
