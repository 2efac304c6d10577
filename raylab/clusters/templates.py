"""The files of the package `cluster`: read, and filled in."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["fill", "fill_words", "placeholders", "read_data", "read_text"]

# Not by its name as a package: a user may have a module that is called so, too.
_FOLDER = Path(__file__).parents[2] / "cluster"
_NAME = r"\$\{([a-z_]+)\}"
_BLOCK = re.compile(rf"^( *){_NAME}$", re.MULTILINE)
_INLINE = re.compile(_NAME)


def read_text(name: str) -> str:
    """Return a file of the package `cluster`."""
    return (_FOLDER / name).read_text(encoding="utf-8")


@functools.cache
def read_data(name: str) -> dict[str, Any]:
    """Return what a YAML or JSON file of the package `cluster` holds, to be read only."""
    text = read_text(name)
    # The schema is large, and YAML's reader in Python slow.
    found: dict[str, Any] = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    return found


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of YAML with a value for every ${name}.

    A name that has a line for itself becomes lines of YAML, any other one becomes JSON, which is
    YAML, too: so no value can be taken for something else.

    Args:
        template: text with ${name}.
        values: by name; those that the template does not name are left out.
    """

    def block(match: re.Match[str]) -> str:
        indent, value = match[1], values[match[2]]
        lines = yaml.safe_dump(
            value, sort_keys=False, width=10_000, allow_unicode=True
        ).splitlines()
        return "\n".join(indent + line for line in lines)

    text = _BLOCK.sub(block, template)
    return _INLINE.sub(lambda match: json.dumps(values[match[1]]), text)


def fill_words(command: str, words: Mapping[str, str]) -> str:
    """Return a command with words for its ${name}, which must be quoted for the shell."""
    return _INLINE.sub(lambda match: words[match[1]], command)


def placeholders(text: str) -> list[str]:
    """Return the names that were not filled in, each once, in their order."""
    return list(dict.fromkeys(_INLINE.findall(text)))
