"""What each model family tells about its checkpoints.

A family is a module of this folder with a `FAMILY`, listed in `FAMILIES`."""

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.layouts.rules import AnyRule

FAMILIES = ("csm", "mimi", "snac", "musicgen", "encodec", "t5")

Settings = dict[str, Any]  # a model's configuration as our own config.json has it


@dataclass(frozen=True)
class Companion:
    """A model of another family that comes along: inside the weights under `prefix`, or in a file beside them."""

    family: str
    prefix: str
    layout: str  # of the copy inside
    files: tuple[str, ...]  # best first; the first is what we write
    settings: str  # where the family's settings hold those of the companion


@dataclass(frozen=True)
class Adaptable:
    """What adapters of a family need to be converted to PEFT's form and back."""

    layout: str  # of the weights that PEFT adapts
    embeddings: tuple[str, ...]  # modules of ours that are tables; other modules with a matrix are linear
    tied: Mapping[str, str]  # modules of theirs that share a weight and are one of ours: {copy: original}


@dataclass(frozen=True)
class Family:
    """A family's layouts and how they relate to ours.

    layouts         names of those that can be read; `written`, of those that can be written; `ours` is one of them
    published       settings of weights that come without a configuration
    read_inside     what a weights file says about itself, its name for errors -> settings, None if it says nothing
    companions      the models that come along
    embeds          layout, settings -> whether the layout holds them inside
    beside          files that go with the weights unchanged
    added           settings, layout, files beside the written weights -> JSON files that the layout's readers also need
    adaptable       how its adapters are converted, if they are
    detect          tensor names -> layout, None if none of this family's
    own             a file's tensors -> {name that the rules know: name in the file} of this family's
    shapes          settings -> every tensor of ours
    rules           layout, settings -> the table between ours and the layout
    read_settings   config.json of any known form, its name for errors -> settings, None if it is about something else
    write_settings  settings, layout -> the config.json that goes with the layout
    choose_files    a directory's or repository's files, its name for errors -> one copy's weights (or their index)
                    first, then what lies beside them
    """

    title: str
    layouts: tuple[str, ...]
    written: tuple[str, ...]
    ours: str
    published: Settings
    detect: Callable[[Iterable[str]], str | None]
    own: Callable[[Mapping[str, np.ndarray]], dict[str, str]]
    shapes: Callable[[Settings], dict[str, tuple[int, ...]]]
    rules: Callable[[str, Settings], list[AnyRule]]
    read_settings: Callable[[Mapping[str, Any], str], Settings | None]
    write_settings: Callable[[Settings, str], dict[str, Any]]
    choose_files: Callable[[Sequence[str], object], list[str]]
    read_inside: Callable[[Mapping[str, str], str], Settings | None] = lambda _metadata, _source: None
    companions: tuple[Companion, ...] = ()
    embeds: Callable[[str, Settings], bool] = lambda _layout, _settings: False
    beside: tuple[str, ...] = ()
    added: Callable[[Settings, str, Collection[str]], Mapping[str, Any]] = lambda _settings, _layout, _files: {}
    adaptable: Adaptable | None = None


def family(name: str) -> Family:
    """The family of this name."""
    return importlib.import_module(f"backends.layouts.{name}").FAMILY


def everything() -> list[Family]:
    """Every family."""
    return [family(name) for name in FAMILIES]
