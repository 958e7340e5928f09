"""A checkpoint of any layout, checked tensor by tensor against its configuration, as tensors of ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends import hub
from backends.adapters.strict import check_names, check_shapes
from backends.errors import InputError
from backends.layouts.families import Companion, Family, Settings, family
from backends.layouts.files import CONFIG_KEY, blank, blanks, metadata, open_tensors, parse_json, read_json
from backends.layouts.rules import Absent, AnyRule, renamed, to_ours, to_theirs

Tensors = Mapping[str, np.ndarray]
_FLOATS = ("float32", "bfloat16", "float16")
_EXPORTS = ("best_model", "last_model", "best", "last")  # what training leaves of a model in its run directory


@dataclass(frozen=True)
class Checkpoint:
    """Tensors in our names; `ours` reads each when it is looked up, `like` has their shapes and dtypes."""

    family: Family
    layout: str  # of the file
    settings: Settings
    ours: Tensors
    like: Tensors
    source: str  # the file, for messages

    def as_layout(self, layout: str) -> tuple[Tensors, Tensors]:
        """The tensors in a layout's names and forms, lazily, and their shapes and dtypes."""
        rules = self.family.rules(layout, self.settings)
        likes = to_theirs(self.like, rules, self.source)
        return to_theirs(self.ours, rules, self.source), dict(likes)


def read(kind: Family, tensors: Tensors, settings: Settings, source: str, *, strict: bool = True) -> Checkpoint:
    """Check `tensors` (of any of the family's layouts) against the settings.

    Raises InputError, which begins with `source`, for tensors that are missing (if `strict`), unexpected, of the wrong
    shape or not floats.
    """
    layout = layout_of(kind, tensors, source)
    try:
        names = kind.own(tensors)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    own, like = renamed(tensors, names), dict(renamed(blanks(tensors), names))
    required = required_tensors(kind, layout, settings)
    marks = expected_tensors(kind, layout, settings).keys() - required.keys()
    given = {name: value for name, value in like.items() if name not in marks}
    check_names(required, given, strict=strict, source=source)
    check_shapes(_shapes(required), _shapes(given), source=source)
    for name, value in given.items():
        if value.dtype.name not in _FLOATS:
            raise InputError(f"{source}: {name} is {value.dtype.name}, expected one of {', '.join(_FLOATS)}")
    rules = kind.rules(layout, settings)
    return Checkpoint(kind, layout, settings, to_ours(own, rules, source), dict(to_ours(like, rules, source)), source)


def expected_tensors(kind: Family, layout: str, settings: Settings) -> dict[str, np.ndarray]:
    """Every tensor of a layout by name, as arrays without content."""
    return _tensors(kind, kind.rules(layout, settings), settings)


def required_tensors(kind: Family, layout: str, settings: Settings) -> dict[str, np.ndarray]:
    """The same without those that carry nothing we need (`Absent`)."""
    rules = [rule for rule in kind.rules(layout, settings) if not isinstance(rule, Absent)]
    return _tensors(kind, rules, settings)


def _tensors(kind: Family, rules: Sequence[AnyRule], settings: Settings) -> dict[str, np.ndarray]:
    ours = {name: blank(shape) for name, shape in kind.shapes(settings).items()}
    return dict(to_theirs(ours, rules, kind.title))


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in tensors.items()}


def layout_of(kind: Family, tensors: Tensors, source: str) -> str:
    """The layout of these tensors. Raises InputError for another family's, adapters, and quantised ones."""
    if any(".lora_" in name for name in tensors):
        raise InputError(f"{source}: is an adapter, not a whole {kind.title}: give that, and this to generate's --lora")
    quantised = [name for name in tensors if name.endswith((".scales", ".absmax", ".qweight"))]
    if quantised:
        raise InputError(f"{source}: these weights are quantised ({quantised[0]}); give the full-precision checkpoint")
    layout = kind.detect(tensors)
    if layout is None:
        raise InputError(f"{source}: these are not {kind.title}'s tensors; expected {', '.join(kind.layouts)}")
    return layout


def find(source: str | Path, kind: Family, option: str, keys: Sequence[str] = ()) -> Path:
    """The weights file of `source`: that file, or the one of a directory or Hub id that is one copy of the model.

    `option` names the flag in errors, `keys` the short names that it also takes.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    folder = hub.directory(source, lambda files: kind.choose_files(files, f"{option} {source}"), option, keys)
    try:
        return folder / kind.choose_files([file.name for file in folder.iterdir()], f"{option} {source}")[0]
    except InputError as error:
        export = next((folder / name for name in _EXPORTS if (folder / name).is_dir()), None)
        if export is None:
            raise
        raise InputError(f"{error}; a training run left its model in {export}: give that") from error


def open_checkpoint(path: Path, kind: Family) -> Checkpoint:
    """Read a weights file with its configuration, or the published one where the tensors are that model's.

    The configuration is in the file's metadata, or is config.json in the directory of the file's name (best_model/ for
    best_model.pt), or beside it.
    """
    tensors = open_tensors(path)
    own = path.with_suffix("") / "config.json"
    config = own if own.is_file() else path.parent / "config.json"
    settings = _inside(kind, tensors, path)
    if settings is None and config.is_file():
        settings = kind.read_settings(read_json(config), str(config))
    if settings is not None:
        return read(kind, tensors, settings, str(path))
    layout_of(kind, tensors, str(path))
    try:
        return read(kind, tensors, kind.published, str(path))
    except InputError as error:
        raise InputError(
            f"{path}: its configuration is needed, because these are not the published {kind.title}'s tensors: "
            f"put the model's config.json beside it ({error})"
        ) from error


def _inside(kind: Family, tensors: Tensors, path: Path) -> Settings | None:
    """The settings in a file's metadata, which are a config.json of ours or what the family itself understands."""
    said, source = metadata(tensors), f"{path}: its metadata"
    if CONFIG_KEY in said:
        return kind.read_settings(parse_json(said[CONFIG_KEY], source), source)
    return kind.read_inside(said, str(path))


def find_companions(checkpoint: Checkpoint, path: Path) -> dict[str, Checkpoint]:
    """The companions that are inside the weights at `path` or lie beside them, by family."""
    found = ((wanted.family, _companion(checkpoint, wanted, path)) for wanted in checkpoint.family.companions)
    return {name: one for name, one in found if one is not None}


def _companion(checkpoint: Checkpoint, wanted: Companion, path: Path) -> Checkpoint | None:
    kind, settings = family(wanted.family), checkpoint.settings[wanted.settings]
    tensors = open_tensors(path)
    if any(name.startswith(wanted.prefix) for name in tensors):
        return read(kind, tensors, settings, str(path))
    for beside in (path.parent / name for name in wanted.files):
        if beside.is_file() and (tensors := open_tensors(beside)):
            return read(kind, tensors, _inside(kind, tensors, beside) or settings, str(beside))
    return None
