"""xp.cfg: the configuration that audiocraft saves in its checkpoints, YAML with references such as ${sample_rate}."""

import re
from collections.abc import Mapping
from typing import Any

_REFERENCE = re.compile(r"\$\{([A-Za-z0-9_.]+)\}")


def parsed(text: str) -> dict[str, Any]:
    """The configuration with its references resolved. Raises ValueError where it is not a YAML mapping."""
    import yaml  # when it is needed: only audiocraft's checkpoints do

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ValueError("expected a YAML mapping")
    return _resolved(content, content)


def written(content: Mapping[str, Any]) -> str:
    """A configuration as the YAML that audiocraft reads."""
    import yaml

    return yaml.safe_dump(dict(content), sort_keys=False)


def _resolved(value: Any, root: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, root) for item in value]
    found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return _at(root, found[1].split("."), value) if found else value


def _at(root: Mapping[str, Any], path: list[str], otherwise: str) -> Any:
    """What a reference points to, itself resolved; the reference as it stands where nothing is there."""
    value: Any = root
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return otherwise
        value = value[part]
    return _resolved(value, root) if value != otherwise else otherwise
