"""YAML of a bounded size: no short text becomes much when its aliases are written out.

A few lines of aliases to aliases stand for billions of values, and brackets in brackets end in the
interpreter's stack. Both are refused while the text is read, before anything is made of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["MOST_DEPTH", "BoundedLoader", "documents", "one_document", "read_text", "shown"]

MOST_CHARACTERS = 1_000_000
"""Of a document, with its aliases written out."""
MOST_DEPTH = 32
"""Of lists and mappings in each other."""
_MOST_DIGITS = 400
_SHOWN = 80
_DIGITS_A_BIT = 0.30103


class BoundedLoader(yaml.SafeLoader):
    """YAML's safe loader for documents of a bounded size and depth."""

    most_characters = MOST_CHARACTERS
    most_depth = MOST_DEPTH

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self._size = 0
        self._depth = 0
        self._sizes: dict[str, int] = {}
        if len(stream) > self.most_characters:
            raise yaml.YAMLError(self._too_large())

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node; an alias counts as what it stands for."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._sizes:
                raise yaml.composer.ComposerError(
                    None, None, "a value must not contain itself", event.start_mark
                )
            self._count(self._sizes.get(event.anchor, 0), event)
            return super().compose_node(parent, index)
        self._sizes.pop(event.anchor, None)
        before = self._size
        self._count(2 + len(getattr(event, "value", "")), event)
        self._depth += 1
        if self._depth > self.most_depth:
            raise yaml.composer.ComposerError(
                None,
                None,
                f"lists and mappings must be at most {self.most_depth} deep",
                event.start_mark,
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self._sizes[event.anchor] = self._size - before
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return a whole number, of as many digits as one may have."""
        if len(node.value) > _MOST_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number must have at most {_MOST_DIGITS} digits", node.start_mark
            )
        found: int = super().construct_yaml_int(node)
        return found

    def _count(self, size: int, event: Any) -> None:
        self._size += size
        if self._size > self.most_characters:
            raise yaml.composer.ComposerError(None, None, self._too_large(), event.start_mark)

    def _too_large(self) -> str:
        return (
            f"it must have at most {self.most_characters} characters, with its aliases written out"
        )


BoundedLoader.add_constructor("tag:yaml.org,2002:int", BoundedLoader.construct_yaml_int)


def documents(text: str | bytes) -> list[Any]:
    """Return what the documents of a text hold.

    Raises:
        yaml.YAMLError: it is not YAML, or too much of it.

    >>> documents("a: 1")
    [{'a': 1}]
    """
    try:
        return list(yaml.load_all(text, Loader=BoundedLoader))
    except ValueError as error:  # 2024-02-31, which is no date
        raise yaml.YAMLError(str(error)) from None


def one_document(text: str | bytes) -> Any:
    """Return what the only document of a text holds, None where there is none.

    Raises:
        yaml.YAMLError: it is not YAML, or too much of it.
    """
    found = documents(text)
    if len(found) > 1:
        raise yaml.YAMLError(f"it must be one document, but there are {len(found)}")
    return found[0] if found else None


def read_text(path: Path) -> str:
    """Return the text of a file, and no more of it than a document may have, and one character.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is no text.
        ValueError: the path has a NUL.
    """
    with path.open(encoding="utf-8") as file:
        return file.read(MOST_CHARACTERS + 1)


def shown(value: Any) -> str:
    """Return a value as YAML has it, in a line that is cut after 80 characters.

    Nothing is written out beyond them, however much the value holds.

    >>> shown(["ab"] * 3), shown(None)
    ("['ab', 'ab', 'ab']", 'null')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = ""
    for piece in _pieces(value, 0):
        text += piece
        if len(text) > _SHOWN:
            return f"{text[: _SHOWN - 3]}..."
    return text


def _pieces(value: Any, depth: int) -> Iterator[str]:
    """Yield what repr would say of a value, piece by piece."""
    if depth > _SHOWN:
        yield "..."
    elif isinstance(value, Mapping):
        yield "{"
        for index, (key, each) in enumerate(value.items()):
            yield ", " if index else ""
            yield from _pieces(key, depth + 1)
            yield ": "
            yield from _pieces(each, depth + 1)
        yield "}"
    elif isinstance(value, (list, tuple)):
        yield "[" if isinstance(value, list) else "("
        for index, each in enumerate(value):
            yield ", " if index else ""
            yield from _pieces(each, depth + 1)
        yield "]" if isinstance(value, list) else (",)" if len(value) == 1 else ")")
    elif isinstance(value, (str, bytes)):
        yield repr(value[: _SHOWN + 1])
    elif isinstance(value, int) and value.bit_length() > 1000:
        yield f"a whole number of about {int(value.bit_length() * _DIGITS_A_BIT) + 1} digits"
    else:
        yield repr(value)
