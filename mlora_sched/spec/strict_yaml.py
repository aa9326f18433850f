"""Read a YAML document that means one thing only: a key written twice is refused, where YAML readers take the last.

What the document should hold is the models' business. Imported only where a file is read: the reader costs time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import yaml

from mlora_sched.errors import SpecError

MAX_VALUES = 100_000
"""Most values of a document with all references followed; a spec has some dozens."""


def load_yaml(text: str, where: str) -> Any:
    """The one document in `text`; `where` names it in errors.

    Raises:
        SpecError: it is no YAML, a value is none of its type (a 13th month), or a mapping has a key twice.
    """
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except _RepeatedKey as error:
        raise SpecError(f"{where}, line {error.line}: {error}") from None
    except RecursionError:
        raise SpecError(f"{where}: is nested too deeply to be a job spec") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(f"{where}: is not YAML: {error}") from None


class _TooLarge(yaml.YAMLError):
    """References multiply: a few lines of them can stand for more than a machine holds."""


class _RepeatedKey(Exception):
    """A mapping has a key twice, the second time at `line` (1-based)."""

    def __init__(self, key: yaml.ScalarNode, first: yaml.ScalarNode) -> None:
        above = first.start_mark.line + 1
        super().__init__(f"{key.value}: is written twice here (first in line {above}); keep one of them")
        self.line = key.start_mark.line + 1


class _UniqueKeyLoader(yaml.SafeLoader):
    """Looks at mappings as they are written, so that what `<<` merges in may still be overridden."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._sizes: dict[yaml.Node, int] = {}

    def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
        node = super().compose_sequence_node(anchor)
        assert isinstance(node, yaml.SequenceNode)
        self._count(node, node.value)
        return node

    def _count(self, node: yaml.Node, parts: Iterable[yaml.Node]) -> None:
        """Note how many values a node stands for with all that it refers to.

        Raises:
            _TooLarge: too many.
        """
        self._sizes[node] = 1 + sum(self._sizes.get(part, 1) for part in parts)
        if self._sizes[node] > MAX_VALUES:
            raise _TooLarge(f"it stands for more than {MAX_VALUES:,} values")

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        assert isinstance(node, yaml.MappingNode)
        self._count(node, itertools.chain.from_iterable(node.value))
        seen: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and seen.setdefault((key.tag, key.value), key) is not key:
                raise _RepeatedKey(key, seen[key.tag, key.value])
        return node
