"""What a run was asked for: it stands in config.json, and a checkpoint continues only what was asked for the same."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class Settings:
    """A command's options as JSON values; which of them may change, and what each is by default.

    `identity` says what else must be the same, such as {"dataset": its hash}.
    """

    values: Mapping[str, Any]
    may_change: frozenset[str]
    defaults: Mapping[str, Any]
    identity: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Any, **resolved: object) -> "Settings":
        """A dataclass of options with its `may_change`, and values in the place of those that others decide."""
        defaults = {field.name: field.default for field in fields(options) if field.default is not MISSING}
        return cls(plain({**asdict(options), **resolved}), options.may_change, plain(defaults))

    def of_run(self, backend: str, identity: Mapping[str, str] | None = None) -> "Settings":
        """The same on the backend that is in use, whatever was asked for."""
        return replace(self, values={**self.values, "backend": backend}, identity=identity or {})

    def config(self) -> dict[str, Any]:
        """What config.json and checkpoints hold."""
        return {**self.values, "identity": dict(self.identity)}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back: paths are strings, tuples lists."""
    return json.loads(json.dumps(values, default=str))
