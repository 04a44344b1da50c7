"""What somebody wrote as YAML, or as JSON, which is YAML, too.

In: a file's bytes; out: dictionaries, lists and plain values, or a ``ValueError`` that names the line.
A key that stands twice is refused: readers of YAML let the last one win, and what the first one said is lost unseen.
"""

from __future__ import annotations

from typing import Any


def read_yaml(data: bytes) -> Any:
    """The content; ``None`` of an empty file.  Raises ``ValueError``."""
    import yaml  # 0.02 s, and most commands read no file

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(data)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_keys(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _check_keys(root: Any) -> None:
    """Raises ``ValueError`` for the first key that stands twice in one mapping; what ``<<`` brings in is not there."""
    import yaml

    rest, seen = [root], {id(root)}
    while rest:
        node = rest.pop()
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                inner = [*inner, value]
                if not isinstance(key, yaml.ScalarNode):
                    continue
                line = key.start_mark.line + 1
                if (key.tag, key.value) in lines:
                    before = lines[key.tag, key.value]
                    raise ValueError(f"line {line}: the key {key.value!r} stands in line {before} already")
                lines[key.tag, key.value] = line
        for each in reversed(inner):  # so that the first in the file is told
            if id(each) not in seen:  # aliases lead to one node from many places
                seen.add(id(each))
                rest.append(each)
