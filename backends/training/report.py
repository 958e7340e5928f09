"""report.html: one self-contained page with curves, settings, spectrograms and playable samples."""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends.atomic import write_text
from backends.base import Section
from backends.data import audio
from backends.training import log, samples

BETWEEN = 8  # steps whose samples are shown besides the first's and the last's
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid #ddd}
img{max-width:100%}table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem
0;text-align:left;vertical-align:top} figure{margin:0 0
1.5rem}figcaption{color:#555}code{font-size:.9em}audio{width:100%}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:1rem}
"""


def write_report(run: Path, title: str, more: Sequence[Section] = ()) -> Path:
    """Write `run`/report.html from the run's metrics.csv, config.json, samples/ and `more`; returns its path."""
    rows = log.read(run / "metrics.csv")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        _summary(rows),
        _section("Loss", _curves(rows)),
        *(_section(html.escape(section.title), section.html) for section in more),
        _section("Samples", _samples(run)),
        _section("Settings", _settings(config)),
    ]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return write_text(run / "report.html", f"{page}<style>{_STYLE}</style><body>{''.join(sections)}</body></html>\n")


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>{body}" if body else ""


def _summary(rows: list[dict[str, float]]) -> str:
    losses = [row["loss"] for row in rows if "loss" in row]
    values = [row["val_loss"] for row in rows if "val_loss" in row]
    parts = []
    if losses:
        parts.append(f"Training loss {losses[0]:.4f} to {losses[-1]:.4f} in {int(rows[-1]['step'])} steps")
    if values:
        parts.append(f"validation loss {values[0]:.4f} to {values[-1]:.4f}, best {min(values):.4f}")
    return f"<p>{', '.join(parts)}.</p>" if parts else ""


def _curves(rows: list[dict[str, float]]) -> str:
    skip = {"step", "epoch", "learning_rate", "grad_norm", "audio_s_per_s", "peak_memory_gb"}
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in skip]
    if not names:
        return ""
    drawing = figure(9, 3.2)
    axes = drawing.add_subplot()
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "", label=name.replace("_", " "))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")  # a fixed place: looking for the best one takes seconds with many points
    return image(drawing, "Loss by step")


def _samples(run: Path) -> str:
    kept = samples.kept(run)
    if not kept:
        return ""
    steps = sorted({entry.step for entry in kept})
    between = _spread(steps[1:-1], BETWEEN)
    shown, others = (
        [entry for entry in kept if entry.step in some] for some in ((steps[0], steps[-1]), between)
    )  # fmt: skip
    body = f'<div class="pair">{"".join(_sample(run, entry, draw=True) for entry in shown)}</div>'
    if others:
        inner = "".join(_sample(run, entry, draw=False) for entry in others)
        body += f'<details><summary>Samples in between</summary><div class="pair">{inner}</div></details>'
    if len(steps) > len(between) + 2:
        body += f"<p>Those of {len(steps) - len(between) - 2} other steps are in <code>samples/</code>.</p>"
    return body


def _spread(steps: list[int], count: int) -> list[int]:
    """At most so many of the steps, evenly."""
    return steps if len(steps) <= count else [steps[(2 * i + 1) * len(steps) // (2 * count)] for i in range(count)]


def _sample(run: Path, entry: samples.Kept, *, draw: bool) -> str:
    path = run / "samples" / entry.file
    if not path.exists():
        return ""
    sound = base64.b64encode(path.read_bytes()).decode()
    picture = _spectrogram(path) if draw else ""
    caption = html.escape(entry.caption)
    return (
        f"<figure><figcaption>Step {entry.step}, {html.escape(entry.name)}: {caption}</figcaption>{picture}"
        f'<audio controls src="data:audio/wav;base64,{sound}"></audio></figure>'
    )


def _spectrogram(path: Path, rate_hz: int = 16000) -> str:
    signal = audio.read(path, rate_hz)
    drawing = figure(5, 2.2)
    axes = drawing.add_subplot()
    padded = np.pad(signal, (0, max(0, 1024 - signal.size)))
    axes.set_facecolor("black")  # of silence, which has no level in dB
    with np.errstate(divide="ignore"):
        axes.specgram(padded, NFFT=512, Fs=rate_hz, noverlap=384, vmin=-140, vmax=-30, cmap="magma")
    axes.set_xlabel("seconds")
    axes.set_ylabel("Hz")
    return image(drawing, f"Spectrogram of {path.name}")


def _settings(config: dict) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(str(value))}</td></tr>"
        for name, value in sorted(config.items())
    )
    return f"<table>{rows}</table>"


def figure(width: float, height: float) -> Any:
    """A matplotlib figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=110)


def image(drawing: Any, alternative: str) -> str:
    """The figure as an HTML image that holds its own data; `alternative` is the text in its place."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'
