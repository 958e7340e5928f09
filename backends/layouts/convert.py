"""Rewrite a checkpoint in another layout, tensor for tensor, without either framework.

    python -m backends.layouts.convert sesame/csm-1b ours --to csm-mlx
    python -m backends.layouts.convert finetune_output/ckpt_epoch_5.safetensors hf --to transformers
    python -m backends.layouts.convert lora_finetune_output/lora_ckpt_epoch_5.safetensors adapter --to peft

Tensors are read, changed and written one at a time, so memory stays at the largest of them.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from backends.atomic import behind_link, sync, write_text
from backends.cli import run
from backends.errors import InputError
from backends.layouts import adapters
from backends.layouts.checkpoint import Checkpoint, Tensors, find, find_companions, open_checkpoint
from backends.layouts.families import Companion, Family, everything, family
from backends.layouts.files import CONFIG_KEY, PICKLED, read_json, write
from backends.layouts.rules import renamed, together

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Options:
    """Rewrite a checkpoint in another layout, tensor for tensor."""

    src: Annotated[str, Positional, arg(metavar="SRC")]
    """A weights file, an index.json, a directory or a Hub id, of any layout of the same family."""
    dst: Annotated[Path, Positional, arg(metavar="DST")]
    """A .safetensors file, or a directory, which also gets the configuration and what lies beside the weights."""
    to: Annotated[str, arg(metavar="NAME")]
    """torchtune, transformers or csm-mlx (CSM); mimi, kyutai-mimi or mlx-mimi (Mimi); snac, snac-legacy or mlx-snac
    (SNAC); musicgen, audiocraft-musicgen or mlx-musicgen (MusicGen); encodec, encodec-legacy, encodec-folded,
    audiocraft-encodec, mlx-examples-encodec or mlx-encodec (EnCodec); t5 or mlx-t5 (a T5 encoder); for an adapter peft
    (a directory), csm-mlx-lora or mlx-musicgen-lora (a file)."""
    overwrite: bool = False
    """Replace DST where it exists."""


def main(options: Options) -> None:
    """Convert and say what was done."""
    for kind in everything():
        if options.to in kind.written:
            return _convert_weights(options, kind)
        if kind.adaptable and options.to in adapters.targets(kind):
            return _convert_adapter(options, kind)
    known = dict.fromkeys(name for kind in everything() for name in (*kind.written, *adapters.targets(kind)))
    raise InputError(f"--to {options.to}: no such layout; expected one of {', '.join(known)}")


def _convert_adapter(options: Options, kind: Family) -> None:
    if options.to == adapters.PEFT:
        _check_destination(options, [adapters.CONFIG, adapters.TENSORS], as_file=False)
        _replace(options.dst, lambda folder: print(adapters.to_peft(options.src, folder)))
    else:
        _check_destination(options, [], as_file=True)
        print(adapters.from_peft(options.src, options.dst, kind))
    print(f"{options.dst}: {options.to}")


def _convert_weights(options: Options, kind: Family) -> None:
    as_file = options.dst.suffix == ".safetensors"
    along_as = [wanted.files[0] for wanted in kind.companions]
    _check_destination(options, [CONFIG, WEIGHTS, *kind.beside, *along_as], as_file=as_file)
    path = find(options.src, kind, "SRC")
    source = open_checkpoint(path, kind)
    along = find_companions(source, path)
    source = _with_settings_of(along, source)
    print(_described(source))
    if as_file:
        _write_alone(options.dst, source, along, options.to)
    else:
        _replace(options.dst, lambda folder: _fill(folder, source, along, path, options.to))
    about = "".join(_about(wanted, source, along.get(wanted.family), options) for wanted in kind.companions)
    print(f"{options.dst}: {options.to}{about}")


def _with_settings_of(along: Mapping[str, Checkpoint], source: Checkpoint) -> Checkpoint:
    """The checkpoint with its companions' settings as their own files have them."""
    own = {w.settings: along[w.family].settings for w in source.family.companions if w.family in along}
    return replace(source, settings={**source.settings, **own})


def _described(source: Checkpoint) -> str:
    count = sum(value.size for value in source.like.values())
    dtypes = ", ".join(sorted({value.dtype.name for value in source.like.values()}))
    return f"{source.source}: {source.family.title}, {source.layout}, {count:,} parameters, {dtypes}"


def _about(wanted: Companion, source: Checkpoint, along: Checkpoint | None, options: Options) -> str:
    title = family(wanted.family).title
    inside = source.family.embeds(options.to, source.settings)
    if along is None and inside:
        where = f"no {title} lies inside or beside {source.source}"
        return f", without {wanted.prefix}* ({where}; put {' or '.join(wanted.files)} there to have it along)"
    if along is None:
        return ""
    if inside:
        return f", with the {title} of {along.source} under {wanted.prefix}"
    if options.dst.suffix == ".safetensors":
        return f", without the {title} of {along.source} (a directory would get it)"
    return f", with the {title} of {along.source} as {wanted.files[0]}"


def _weights(
    source: Checkpoint, along: Mapping[str, Checkpoint], layout: str
) -> tuple[Tensors, dict[str, str], Tensors]:
    """What `write` needs: tensors, metadata, shapes and dtypes."""
    tensors, like = source.as_layout(layout)
    metadata = {"format": "mlx" if layout == source.family.ours else "pt"}
    for wanted in source.family.companions:
        if wanted.family in along and source.family.embeds(layout, source.settings):
            inner, inner_like = along[wanted.family].as_layout(wanted.layout)
            names = {f"{wanted.prefix}{name}": name for name in inner}
            tensors, like = together(tensors, renamed(inner, names)), {**like, **renamed(inner_like, names)}
    return tensors, metadata, like


def _write_alone(path: Path, source: Checkpoint, along: Mapping[str, Checkpoint], layout: str) -> None:
    """A file that no config.json goes with carries its configuration, in our form."""
    tensors, about, like = _weights(source, along, layout)
    config = source.family.write_settings(source.settings, source.family.ours)
    write(path, tensors, {**about, CONFIG_KEY: json.dumps(config)}, like)


def _fill(folder: Path, source: Checkpoint, along: Mapping[str, Checkpoint], path: Path, layout: str) -> None:
    write(folder / WEIGHTS, *_weights(source, along, layout))
    write_text(folder / CONFIG, json.dumps(_config(source, path, layout), indent=1))
    for wanted in source.family.companions:
        if wanted.family in along and not source.family.embeds(layout, source.settings):
            _write_alone(folder / wanted.files[0], along[wanted.family], {}, family(wanted.family).ours)
    for name in source.family.beside:
        if (path.parent / name).is_file():
            shutil.copyfile(path.parent / name, folder / name)
            sync(folder / name)
    found = [file.name for file in folder.iterdir()]
    for name, content in source.family.added(source.settings, layout, found).items():
        if name not in found:
            write_text(folder / name, json.dumps(content, indent=1))


def _config(source: Checkpoint, path: Path, layout: str) -> dict:
    """The configuration in the layout's form; where the layout stays the same, as it was.

    A config.json beside the weights may be about something else, such as the options of the run that made them.
    """
    beside = path.parent / CONFIG
    as_it_was = read_json(beside) if layout == source.layout and beside.is_file() else {}
    if not as_it_was or not source.family.read_settings(as_it_was, str(beside)):
        return source.family.write_settings(source.settings, layout)
    # Sesame's repository points transformers to its index by this key; the copy is a single file.
    return {key: value for key, value in as_it_was.items() if key != "transformers_weights"}


def _check_destination(options: Options, names: Sequence[str], *, as_file: bool) -> None:
    """Refuse what exists unless told otherwise, and a directory with files other than `names` in any case."""
    path = options.dst
    wanted = "a .safetensors file" if as_file else "a directory"
    if as_file != (path.suffix == ".safetensors") or path.suffix in PICKLED:
        raise InputError(f"DST {path}: --to {options.to} writes {wanted}")
    if not path.exists():
        return
    if path.is_dir() == as_file:
        raise InputError(f"DST {path}: exists and is not {wanted}; give another name")
    if not options.overwrite:
        raise InputError(f"DST {path}: already exists; give another name, or --overwrite")
    foreign = [] if as_file else sorted(entry.name for entry in path.iterdir() if entry.name not in names)
    if foreign:
        raise InputError(f"DST {path}: holds {foreign[0]}, which is not replaced; give another directory")


def _replace(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` make the directory under another name, then put it in place of `path`, or of what that links to."""
    path = behind_link(path)
    staging, old = (path.with_name(f".{path.name}.{kind}") for kind in ("tmp", "old"))
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        fill(staging)
        sync(staging)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)  # of a conversion that was cut
            os.replace(path, old)
        os.replace(staging, path)
        sync(path.parent)
    except OSError as error:
        raise InputError(f"DST {path}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    run(main, Options)
