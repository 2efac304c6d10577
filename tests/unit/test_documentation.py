"""What documents and docstrings name is there: files, modules and what is in them."""

from __future__ import annotations

import ast
import functools
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylab.config import ALL_METHODS, FAMILIES

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
ROOMS = ("actors", "benchmarks", "cluster", "docs", "raylab", "tests", "tune_configs")
PATH = re.compile(rf"(?<![\w/.:-])(?:{'|'.join(ROOMS)})/[\w/.-]*\.(?:py|md|yaml|json)\b")
FILE = re.compile(r"`([\w/]+\.py)`")
NAME = re.compile(r"`((?:raylab|actors)(?:\.\w+)+)`")
KEY = re.compile(r"`(\w+)=[^`]*`")
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=str,
)
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
MADE_UP = re.compile(r"NAME|sasgd")
"""In names that stand for others, and in those of the tutorial that makes the files."""


def prose(source: str) -> Iterator[str]:
    """Yield the docstrings and the comments of a module."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@functools.cache
def names_of_files() -> frozenset[str]:
    return frozenset(path.name for path in SOURCES)


@functools.cache
def there(name: str) -> bool:
    """Tell whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        listed = getattr(found, "__all__", None)
        if listed is not None and length < len(parts) and parts[length] not in listed:
            return False  # it is another module's, and may leave this one any day
        for part in parts[length:]:
            annotated = getattr(found, "__annotations__", {})
            if not hasattr(found, part) and part not in annotated:
                return False
            found = getattr(found, part, None)
        return True
    return False


def wrong(text: str, beside: Path) -> list[str]:
    """Return what a text names that is not there.

    Args:
        text: of a document or a docstring.
        beside: file that it stands in.
    """
    missing = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    for path in FILE.findall(text):
        inside = any((folder / path).exists() for folder in (ROOT, beside.parent, *_rooms(beside)))
        if not inside and ("/" in path or path not in names_of_files()):
            missing.append(path)
    missing += [name for name in NAME.findall(text) if not there(name)]
    return [each for each in missing if not MADE_UP.search(each)]


def _rooms(beside: Path) -> tuple[Path, ...]:
    if beside.suffix == ".md":
        return (ROOT / "raylab/algorithms", ROOT / "raylab/drivers", ROOT / "actors")
    return ()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_document_names_files_and_modules_that_are_there(page: Path) -> None:
    assert wrong(page.read_text(encoding="utf-8"), page) == []


def test_docstrings_and_comments_name_files_and_modules_that_are_there() -> None:
    found = {}
    for path in SOURCES:
        missing = [
            each for text in prose(path.read_text(encoding="utf-8")) for each in wrong(text, path)
        ]
        if missing:
            found[str(path.relative_to(ROOT))] = missing
    assert found == {}


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_speaks_of_keys_and_methods_that_there_are() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = {key for family in FAMILIES for key in family.fields} | {"methods", "seeds"}
    for line in re.findall(r"^raylab (?:train|compare|resume|tune) .*$", text, re.MULTILINE):
        words = line.partition("#")[0].split()
        for word in words[2:]:
            key, equals, _ = word.partition("=")
            if equals:
                assert key.split(".")[0] in known | {"train", "budget"}, line
    table = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert set(table) <= set(ALL_METHODS)
    assert len(table) == 9


def test_what_is_not_there_is_found() -> None:
    text = (
        "see `raylab/nowhere.py`, `nothing_like_it.py`, `raylab.errors.NoError` and "
        "docs/missing.md, not `raylab.errors.ConfigError`, `parse.py` or docs/design.md"
    )
    assert sorted(wrong(text, ROOT / "README.md")) == [
        "docs/missing.md",
        "nothing_like_it.py",
        "raylab.errors.NoError",
        "raylab/nowhere.py",
        "raylab/nowhere.py",
    ]
