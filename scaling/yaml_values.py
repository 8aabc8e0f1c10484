"""Strict YAML: plain values that remember the line they stand on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scaling.errors import UserError


@dataclass(frozen=True)
class Located:
    """A value and where it was written."""

    value: Any
    """A scalar, a list of :class:`Located`, or a dict from key to :class:`Located`."""
    where: str
    """``file:line``."""

    def plain(self) -> Any:
        """The value without locations."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def read(path: Path) -> Located:
    """The document in ``path``.

    Raises:
        UserError: no such file, not YAML, or a key written twice.

    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the sweep {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if node is None:
        raise UserError(f"{path} is empty; a sweep needs at least a name and base")
    return _located(node, path.name)


def _located(node: yaml.Node, file: str) -> Located:
    where = f"{file}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return Located([_located(child, file) for child in node.value], where)
    if isinstance(node, yaml.MappingNode):
        return Located(_mapping(node, file), where)
    try:
        return Located(yaml.SafeLoader("").construct_object(node), where)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: cannot read the value {node.value!r}") from error


def _mapping(node: yaml.MappingNode, file: str) -> dict[str, Located]:
    mapping: dict[str, Located] = {}
    for key_node, child in node.value:
        key = str(key_node.value)
        if key in mapping:
            raise UserError(f"{file}:{key_node.start_mark.line + 1}: {key!r} is written twice")
        mapping[key] = Located(_located(child, file).value, f"{file}:{key_node.start_mark.line + 1}")
    return mapping
