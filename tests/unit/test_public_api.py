"""What the packages export: importable, complete, sorted, and light where it says so."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import actors
import raylab

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
# Importing this one runs the command line.
RUNS = {"raylab.__main__"}


def module_names() -> list[str]:
    found = []
    for package in (raylab, actors):
        found.append(package.__name__)
        walk = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        found.extend(info.name for info in walk if info.name not in RUNS)
    return found


NAMES = module_names()


def in_order(names: list[str]) -> list[str]:
    """Constants, then classes, then the rest, each by the alphabet."""

    def kind(name: str) -> int:
        return 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2

    return sorted(names, key=lambda name: (kind(name), name))


def exports(name: str) -> tuple[ModuleType, list[str]]:
    module = importlib.import_module(name)
    return module, list(getattr(module, "__all__", []))


@pytest.mark.parametrize("name", NAMES)
def test_every_exported_name_is_there_and_listed_once_in_order(name):
    module, listed = exports(name)
    assert [each for each in listed if not hasattr(module, each)] == []
    assert listed == in_order(listed)
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("name", NAMES)
def test_only_packages_without_light_names_and_nothing_else_export_nothing(name):
    module, listed = exports(name)
    if not listed:
        assert hasattr(module, "__path__"), f"{name} is a module without __all__"
        source = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        assert len(source.body) == 1, f"{name} has more than a docstring and no __all__"


def imported_elsewhere() -> list[tuple[str, str, str]]:
    """(importing file, module, name) for every import from one of our modules into another."""
    found = []
    for package in ("raylab", "actors", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.ImportFrom) or node.module not in NAMES:
                    continue
                where = str(path.relative_to(ROOT))
                found.extend((where, node.module, alias.name) for alias in node.names)
    return found


def test_what_one_module_takes_from_another_is_exported_there():
    taken = imported_elsewhere()
    assert len(taken) > 100
    hidden = []
    for where, name, each in taken:
        _, listed = exports(name)
        if each not in listed and f"{name}.{each}" not in NAMES:
            hidden.append(f"{where} takes {each} from {name}")
    assert hidden == []


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("raylab", "actors")])
def test_what_a_module_exports_has_a_docstring(name):
    module, listed = exports(name)
    for each in listed:
        thing = getattr(module, each)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{name}.{each}"


def test_the_package_lists_what_it_exports():
    assert dir(raylab) == sorted(raylab.__all__)
    assert {"PipelineTrainer", "Result", "Schedule", "RaylabError"} <= set(raylab.__all__)


def test_names_that_come_late_are_those_of_their_modules():
    from raylab.drivers.pipeline.trainer import PipelineTrainer
    from raylab.drivers.result import Result
    from raylab.optimizers import Schedule

    assert raylab.PipelineTrainer is PipelineTrainer
    assert raylab.Result is Result
    assert raylab.Schedule is Schedule


def test_a_name_that_the_package_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'raylab' has no attribute 'Trainer'"):
        _ = raylab.Trainer


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import raylab", ["torch", "ray", "numpy", "pyarrow"]),
        ("from raylab import ConfigError", ["torch", "ray", "numpy", "pyarrow"]),
        ("import raylab.config", ["torch", "ray"]),
        ("import raylab.cli.main", ["torch", "ray"]),
        ("import raylab.algorithms.stage.delayed_stage", ["ray", "actors"]),
        (
            "import actors.pipeline.stage, actors.pipeline.runner, actors.wires.zmq_wire",
            ["ray", "raylab"],
        ),
    ],
)
def test_an_import_brings_in_no_more_than_it_needs(statement, heavy):
    code = f"import sys\n{statement}\nprint([n for n in {heavy} if n in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def readme_blocks() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_the_readme_shows_python_that_python_can_read():
    blocks = readme_blocks()
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


def test_the_readme_uses_names_and_arguments_that_exist():
    from raylab.drivers.pipeline.trainer import PipelineTrainer
    from raylab.drivers.result import Result

    known = {
        "PipelineTrainer": set(inspect.signature(PipelineTrainer).parameters),
        "fit": set(inspect.signature(PipelineTrainer.fit).parameters),
    }
    seen = set()
    for node in ast.walk(ast.parse("\n".join(readme_blocks()))):
        if isinstance(node, ast.ImportFrom) and node.module in NAMES:
            _, listed = exports(node.module)
            assert {alias.name for alias in node.names} <= set(listed)
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in known:
                seen.add(name)
                assert {keyword.arg for keyword in node.keywords} <= known[name]
        is_result = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "result"
        if is_result:
            assert node.attr in Result.__dataclass_fields__
    assert seen == set(known)
