"""Checkpoints that survive kill -9: staged, hashed, synced, renamed into place, verified before use.

A checkpoint is a directory `step_N/` with a `manifest.json` that lists each file's size and SHA-256. It is written
under another name, so a directory called `step_N` is either whole or was damaged later; damage is found by the hashes.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from backends.atomic import sha256, sync
from backends.errors import InputError

MANIFEST = "manifest.json"


class Checkpoints:
    """The checkpoints of one run, newest last; only the `keep_last` newest are kept."""

    def __init__(self, directory: Path, keep_last: int = 2):
        self.directory = directory
        self.keep_last = keep_last

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a staging directory, then commit it as `step_<step>`; returns its path."""
        final = self.directory / f"step_{step}"
        if final.exists() and damage(final) is None:
            return final
        staging = self.directory / f"step_{step}.tmp"
        try:
            _empty(staging)
            write(staging)
            seal(staging)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staging, final)
            for directory in (self.directory, self.directory.parent):
                sync(directory)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise InputError(
                f"{final}: cannot save a checkpoint ({error.strerror or error}); earlier ones are intact: "
                "free some disk space and run the same command again"
            ) from error
        self._rotate(step)
        return final

    def newest(self, report: Callable[[str], None] = print) -> Path | None:
        """The newest checkpoint that verifies, None where there is none; says which it passed over and why.

        Removes unfinished ones. Raises InputError where there are some and all are damaged.
        """
        for leftover in self.directory.glob("step_*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)  # several ranks may be at it
        damaged: list[str] = []
        for path in reversed(self.all()):
            problem = damage(path)
            if problem is None:
                for line in damaged:
                    report(f"passing over {path.parent / line}")
                return path
            damaged.append(f"{path.name}: {problem}")
        if damaged:
            raise InputError(
                f"{self.directory}: every checkpoint is damaged ({'; '.join(damaged)}): restore them, "
                "give another --output-dir, or --no-resume to start over"
            )
        return None

    def all(self) -> list[Path]:
        """Every committed checkpoint, oldest first."""
        found = [path for path in self.directory.glob("step_*") if path.name.removeprefix("step_").isdigit()]
        return sorted(found, key=step_of)

    def clear(self) -> None:
        """Remove every checkpoint."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _rotate(self, step: int) -> None:
        """Remove those before the `keep_last` newest up to `step`, and damaged ones of a future that was given up."""
        kept = [path for path in self.all() if step_of(path) <= step][-self.keep_last :]
        for path in self.all():
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step_"))


def seal(directory: Path) -> None:
    """Write the manifest of a directory's files and bring everything to the disk."""
    files = sorted(path for path in directory.iterdir() if path.name != MANIFEST)
    entries = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
    (directory / MANIFEST).write_text(json.dumps(entries, indent=1), encoding="utf-8")
    for path in [*files, directory / MANIFEST, directory]:
        sync(path)


def damage(directory: Path) -> str | None:
    """What is wrong with a sealed directory, naming the file; None where it is whole."""
    try:
        entries = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in entries.items():
            path = directory / name
            if not path.exists():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} is {path.stat().st_size} bytes, was {entry['bytes']} when saved"
            if sha256(path) != entry["sha256"]:
                return f"{name} does not match its SHA-256, its content changed after it was saved"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} is unreadable ({error})"
    return None


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
