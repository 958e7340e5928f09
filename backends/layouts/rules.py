"""Rename and reshape tensors between checkpoint layouts. One table per pair of layouts serves both directions.

Names are templates: `{n}` stands for a whole number, `{w}` for weight or bias, `{any}` for anything. Arrays are NumPy,
bfloat16 included (ml_dtypes), so converting needs neither framework.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
    """One tensor of ours stacks all of theirs whose number is `{k}`."""

    ours: str
    theirs: str


@dataclass(frozen=True)
class Absent:
    """A tensor that ours does without: dropped when read, written as `value`, once for each `{k}` below `count`."""

    theirs: str
    value: np.ndarray
    count: int = 1


AnyRule = Rule | Joined | Stacked | Absent


def to_ours(source: Tensors, rules: Sequence[AnyRule], what: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield our (name, array) for every tensor in `source`; `what` names it in errors."""
    table = [(rule, _regex(rule.theirs)) for rule in rules]
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name in source:
        rule, found = _match(name, table, what)
        if isinstance(rule, Rule):
            yield _fill(rule.ours, found), rule.op.to_ours(source[name])
        elif isinstance(rule, Joined):
            parts = np.split(source[name], len(rule.ours))
            for ours, op, part in zip(rule.ours, rule.ops, parts, strict=True):
                yield _fill(ours, found), op.to_ours(part)
        elif isinstance(rule, Stacked):
            stacks.setdefault(_fill(rule.ours, found), {})[int(found["k"])] = source[name]
    for name, parts in stacks.items():
        yield name, np.stack([parts[k] for k in sorted(parts)])


def to_theirs(source: Tensors, rules: Sequence[AnyRule], what: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield their (name, array) for every tensor in `source`; `what` names it in errors."""
    table: list[tuple[AnyRule, re.Pattern]] = []
    for rule in rules:
        if isinstance(rule, Absent):
            yield from ((rule.theirs.replace("{k}", str(k)), rule.value) for k in range(rule.count))
        else:
            table += [(rule, _regex(ours)) for ours in ([*rule.ours] if isinstance(rule, Joined) else [rule.ours])]
    for name in source:
        rule, found = _match(name, table, what)
        if isinstance(rule, Rule):
            yield _fill(rule.theirs, found), rule.op.to_theirs(source[name])
        elif isinstance(rule, Stacked):
            for k, part in enumerate(source[name]):
                yield _fill(rule.theirs, {**found, "k": str(k)}), part
        elif isinstance(rule, Joined) and name == _fill(rule.ours[0], found):
            parts = [op.to_theirs(source[_fill(ours, found)]) for ours, op in zip(rule.ours, rule.ops, strict=True)]
            yield _fill(rule.theirs, found), np.concatenate(parts)


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
