"""Rename and reshape tensors between checkpoint layouts. One table per pair of layouts serves both directions.

Names are templates: `{n}` stands for a whole number, `{w}` for weight or bias, `{any}` for anything. Arrays are NumPy,
bfloat16 included (ml_dtypes), so converting needs neither framework.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np

from backends.errors import InputError

Tensors = Mapping[str, np.ndarray]
ANY = "{any}"  # the rest of a name


@dataclass(frozen=True)
class Op:
    """A lossless change of an array and its inverse."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Op(lambda x: x, lambda x: x)
# PyTorch's Conv1d (out, in / groups, k) and MLX's (out, k, in / groups).
CONV = Op(lambda x: x.swapaxes(1, 2), lambda x: x.swapaxes(1, 2))
# PyTorch's ConvTranspose1d (in, out, k) and MLX's (out, k, in).
CONV_TRANSPOSE = Op(lambda x: x.transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1))
# A depthwise ConvTranspose1d is (channels, 1, k) in PyTorch and (channels, k, 1) in MLX.
DEPTHWISE_TRANSPOSE = Op(lambda x: x.swapaxes(1, 2), lambda x: x.swapaxes(1, 2))
# A 1x1 convolution (out, in, 1) as a linear map (out, in).
POINTWISE = Op(lambda x: x[..., 0], lambda x: x[..., None])


def rope_rows(head_dim: int) -> Op:
    """Rows of q or k (H D, ...) between interleaved pairs (ours) and halves (transformers).

    Source: transformers' convert_csm.py, permute_for_rope.
    """

    def swap(x: np.ndarray, inner: tuple[int, int]) -> np.ndarray:
        return x.reshape(-1, *inner, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return Op(lambda x: swap(x, (2, head_dim // 2)), lambda x: swap(x, (head_dim // 2, 2)))


def flipped(op: Op) -> Op:
    """The op for when the roles of the two layouts are exchanged."""
    return Op(op.to_theirs, op.to_ours)


@dataclass(frozen=True)
class Rule:
    """One tensor of ours is one of theirs."""

    ours: str
    theirs: str
    op: Op = SAME


@dataclass(frozen=True)
class Joined:
    """Several tensors of ours are blocks of rows of one of theirs, each with its own op."""

    ours: tuple[str, ...]
    theirs: str
    ops: tuple[Op, ...]


@dataclass(frozen=True)
class Stacked:
    """One tensor of ours stacks `count` of theirs, numbered `{k}`."""

    ours: str
    theirs: str
    count: int


@dataclass(frozen=True)
class Several:
    """Tensors of ours that are made of some of theirs together, and back, by functions of all of them."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_ours: Callable[..., Sequence[np.ndarray]]
    to_theirs: Callable[..., Sequence[np.ndarray]]


@dataclass(frozen=True)
class Absent:
    """A tensor that ours does without: dropped when read, written as `value`, once for each `{k}` below `count`.

    Where `of` names tensors of ours, `value` is a function of them and k.
    """

    theirs: str
    value: np.ndarray | Callable[..., np.ndarray]
    count: int = 1
    of: tuple[str, ...] = ()


AnyRule = Rule | Joined | Stacked | Several | Absent


class Lazy(Mapping[str, np.ndarray]):
    """Tensors that are made when they are looked up, so that a conversion holds one at a time."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]):
        self._makers = makers

    def __getitem__(self, name: str) -> np.ndarray:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def renamed(source: Tensors, names: Mapping[str, str]) -> Lazy:
    """Some of the tensors of `source` under other names; `names` is {new: old}."""
    return Lazy({new: partial(source.__getitem__, old) for new, old in names.items()})


def together(*parts: Tensors) -> Lazy:
    """The tensors of all parts."""
    return Lazy({name: partial(part.__getitem__, name) for part in parts for name in part})


def to_ours(source: Tensors, rules: Sequence[AnyRule], what: str) -> Lazy:
    """`source` in our names and forms. Raises InputError for a name that no rule knows; `what` says whose it is."""
    table: list[tuple[AnyRule, re.Pattern]] = []
    for rule in rules:
        table += [(rule, _regex(name)) for name in (rule.theirs if isinstance(rule, Several) else [rule.theirs])]
    makers: dict[str, Callable[[], np.ndarray]] = {}
    stacks: dict[str, dict[int, str]] = {}
    for name in source:
        rule, found = _match(name, table, what)
        if isinstance(rule, Rule):
            makers[_fill(rule.ours, found)] = partial(_one, source, name, rule.op.to_ours)
        elif isinstance(rule, Joined):
            for index, (ours, op) in enumerate(zip(rule.ours, rule.ops, strict=True)):
                makers[_fill(ours, found)] = partial(_block, source, name, index, len(rule.ours), op)
        elif isinstance(rule, Several):
            names = [_fill(theirs, found) for theirs in rule.theirs]
            if all(needed in source for needed in names):
                for index, ours in enumerate(rule.ours):
                    makers[_fill(ours, found)] = partial(_several, source, names, rule.to_ours, index)
        elif isinstance(rule, Stacked):
            stacks.setdefault(_fill(rule.ours, found), {})[int(found["k"])] = name
    for ours, parts in stacks.items():
        makers[ours] = partial(_stack, source, [parts[k] for k in sorted(parts)])
    return Lazy(makers)


def to_theirs(source: Tensors, rules: Sequence[AnyRule], what: str) -> Lazy:
    """`source`, which is ours, in their names and forms. Raises InputError for a name that no rule knows."""
    table: list[tuple[AnyRule, re.Pattern]] = []
    makers: dict[str, Callable[[], np.ndarray]] = {}
    for rule in rules:
        if not isinstance(rule, Absent):
            names = [rule.ours] if isinstance(rule, Rule | Stacked) else rule.ours
            table += [(rule, _regex(ours)) for ours in names]
    for name in source:
        rule, found = _match(name, table, what)
        if isinstance(rule, Rule):
            makers[_fill(rule.theirs, found)] = partial(_one, source, name, rule.op.to_theirs)
        elif isinstance(rule, Joined):
            parts = [_fill(ours, found) for ours in rule.ours]
            makers[_fill(rule.theirs, found)] = partial(_join, source, parts, rule.ops)
        elif isinstance(rule, Several):
            parts = [_fill(ours, found) for ours in rule.ours]
            for index, theirs in enumerate(rule.theirs):
                makers[_fill(theirs, found)] = partial(_several, source, parts, rule.to_theirs, index)
        elif isinstance(rule, Stacked):
            for k in range(rule.count):
                makers[_fill(rule.theirs, {**found, "k": str(k)})] = partial(_layer, source, name, k)
    for rule in rules:
        if isinstance(rule, Absent):
            for k in range(rule.count):
                makers[rule.theirs.replace("{k}", str(k))] = partial(_added, source, rule, k)
    return Lazy(makers)


def _one(source: Tensors, name: str, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return change(source[name])


def _block(source: Tensors, name: str, index: int, blocks: int, op: Op) -> np.ndarray:
    return op.to_ours(np.split(source[name], blocks)[index])


def _join(source: Tensors, names: Sequence[str], ops: Sequence[Op]) -> np.ndarray:
    parts = [source[name] for name in names]
    if not any(any(part.strides) for part in parts):  # shapes without content (`files.blank`) stay that
        return np.broadcast_to(parts[0][:1], (sum(map(len, parts)), *parts[0].shape[1:]))
    return np.concatenate([op.to_theirs(part) for part, op in zip(parts, ops, strict=True)])


def _stack(source: Tensors, names: Sequence[str]) -> np.ndarray:
    return np.stack([source[name] for name in names])


def _layer(source: Tensors, name: str, k: int) -> np.ndarray:
    return source[name][k]


def _several(
    source: Tensors, names: Sequence[str], change: Callable[..., Sequence[np.ndarray]], index: int
) -> np.ndarray:
    parts = [source[name] for name in names]
    return change(*parts)[index].astype(parts[0].dtype, copy=False)


def _added(source: Tensors, rule: Absent, k: int) -> np.ndarray:
    """The value in the dtype of the tensors that it joins."""
    value = rule.value(*(source[name] for name in rule.of), k) if callable(rule.value) else rule.value
    return value.astype(source[next(iter(source))].dtype)


_HOLES = {ANY: r"(?P<any>.+)", "{n}": r"(?P<n>\d+)", "{k}": r"(?P<k>\d+)", "{w}": r"(?P<w>weight|bias)"}


def _regex(template: str) -> re.Pattern:
    pattern = re.escape(template)
    for hole, group in _HOLES.items():
        pattern = pattern.replace(re.escape(hole), group)
    return re.compile(pattern)


def _match(name: str, table: Sequence[tuple[AnyRule, re.Pattern]], what: str) -> tuple[AnyRule, dict[str, str]]:
    for rule, pattern in table:
        if found := pattern.fullmatch(name):
            return rule, found.groupdict()
    raise InputError(f"{what}: unexpected tensor {name}: is this file for another model or layout?")


def _fill(template: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", value)
    return template
