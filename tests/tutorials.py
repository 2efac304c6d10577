"""The pages of docs/tutorials, as a reader works through them: every block is carried out.

    bash      lines of a shell, one after another
    python    run from top to bottom; what it defines is there for the page's next one
    text      what the bash or python before it has said; `...` stands for anything
    diff      a change to the files in the folder
    yaml, and python, whose first line is a comment with a path: the file of that name

Another kind of block is an error, and so is a command in the middle of a sentence, which nobody
would run.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raylab.cli.main import main

__all__ = [
    "FILE",
    "HOSTS",
    "PAGES",
    "Block",
    "Reader",
    "blocks",
    "commands",
    "in_process",
    "in_shell",
]

PAGES = Path(__file__).parents[1] / "docs" / "tutorials"
FILE = "A token and a file"
HOSTS = ("Up", "A job", "A search", "Down")
"""Sections of cluster.md whose commands need hosts."""
KINDS = ("bash", "diff", "python", "text", "yaml")
_FENCE = re.compile(r"\s*(```|~~~)\s*(\S*)\s*")
_COMMAND = re.compile(
    r"`(?:(?:raylab|ray) [^`\s]+ |(?:make|pip|python|git|kubectl|optuna-dashboard) )"
)
"""In a sentence; `ray up` alone is its name."""
_FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        kind: as the fence names it.
        text: its lines.
        place: page and line, for messages.
        section: heading that it stands under.
    """

    kind: str
    text: str
    place: str
    section: str

    @property
    def file(self) -> str | None:
        """The file that it is; None: it is run."""
        named = _FILE.match(self.text)
        return named[1] if named and self.kind in ("python", "yaml") else None


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page.

    Raises:
        AssertionError: something on it would not be run.
    """
    found, lines, opened, section = [], [], None, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        place = f"{page.name}:{number}"
        fence = _FENCE.fullmatch(line)
        if fence and opened is None:
            assert fence[1] == "```", f"{place}: a block must begin with ```"
            assert not line.startswith(" "), f"{place}: a block must begin at the margin"
            assert fence[2] in KINDS, f"{place}: a block must be {KINDS}, but got {fence[2]!r}"
            opened, lines = (fence[2], place), []
        elif fence:
            found.append(Block(opened[0], "".join(lines), opened[1], section))
            opened = None
        elif opened is not None:
            lines.append(f"{line}\n")
        else:
            assert "```" not in line, f"{place}: a fence must stand alone"
            assert not line.startswith(("    ", "\t")), f"{place}: an indented block is not run"
            assert not _COMMAND.search(line), f"{place}: a command must stand in a block"
            section = line.removeprefix("## ") if line.startswith("## ") else section
    assert opened is None, f"{opened}: the block must end"
    for block in found:
        assert block.kind != "yaml" or block.file, (
            f"{block.place}: yaml must begin with # FILE.yaml"
        )
    return found


def commands(block: Block) -> list[str]:
    """Return the commands of a bash block, long ones in one line, comments left out."""
    joined = block.text.replace("\\\n", " ")
    lines = (shlex.split(line, comments=True, posix=False) for line in joined.splitlines())
    return [" ".join(words) for words in lines if words]


def in_process(command: str, folder: Path) -> str:
    """Carry out a command, which is raylab's, in this process; return what it has printed.

    Raises:
        AssertionError: its exit code is not 0.
    """
    words = shlex.split(command)
    if words[0] != "raylab":
        return in_shell({})(command, folder)
    said, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        code = main(words[1:])
    assert code == 0, f"{command}: exit code {code}\n{said.getvalue()}{told.getvalue()}"
    return said.getvalue()


def in_shell(variables: Mapping[str, str]) -> Callable[[str, Path], str]:
    """Return what carries out a command in a shell and returns what it has printed.

    Args:
        variables: of the environment, beside those of this process.
    """

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def carry_out(command: str, folder: Path) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env={**os.environ, "PATH": path, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=250,
        )
        said = f"{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{said}"
        return done.stdout

    return carry_out


@dataclass
class Reader:
    """Somebody who does what a page says, in a folder.

    Attributes:
        folder: to do it in, the working directory of this process where code is run in it.
        carry_out: carries out a command in a folder and returns what it has printed.
        names: what the page's code has defined.
        said: what the last block that was run has printed.
    """

    folder: Path
    carry_out: Callable[[str, Path], str] = in_process
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    said: str = ""

    def follow(self, page: Iterable[Block]) -> None:
        """Carry the blocks out.

        Raises:
            AssertionError: a command fails, or says something else than the page.
        """
        for block in page:
            getattr(self, f"_{block.kind}")(block)

    def _bash(self, block: Block) -> None:
        self.said = "".join(self.carry_out(each, self.folder) for each in commands(block))

    def _python(self, block: Block) -> None:
        if block.file is not None:
            self._write(block)
            return
        said = io.StringIO()
        code = compile(block.text, block.place, "exec")
        with contextlib.redirect_stdout(said):
            exec(code, self.names)  # noqa: S102 - the page's own
        self.said = said.getvalue()

    def _text(self, block: Block) -> None:
        same = doctest.OutputChecker().check_output(
            block.text, self.said, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        )
        assert same, f"{block.place} has\n{block.text}but it was\n{self.said}"

    def _diff(self, block: Block) -> None:
        done = subprocess.run(
            ["git", "apply", "--unidiff-zero", "--whitespace=error", "-"],
            input=block.text,
            cwd=self.folder,
            capture_output=True,
            text=True,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(self.folder.parent)},
        )
        assert done.returncode == 0, f"{block.place}: {done.stderr}"

    def _yaml(self, block: Block) -> None:
        self._write(block)

    def _write(self, block: Block) -> None:
        assert block.file is not None
        (self.folder / block.file).write_text(block.text, encoding="utf-8")
