"""What the README shows runs as it stands, from a script whose classes nobody can import."""

from __future__ import annotations

import bz2
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session", "cold")]

README = Path(__file__).parents[2] / "README.md"

_BEFORE = """
class Scale(nn.Module):  # a block of __main__, as in a notebook: it travels by value
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.factor
"""


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def run(code: str, home: Path) -> Path:
    """Run a script whose results go to `home`; return the path that it prints at its end."""
    done = subprocess.run(
        [sys.executable, "-"],
        input=f"{code}\nprint('trained', result.path)\n",
        cwd=home,
        env={
            **os.environ,
            "HOME": str(home),  # Ray's token stays where it is
            "RAY_AUTH_TOKEN_PATH": str(Path.home() / ".ray" / "auth_token"),
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.split("trained ")[-1].strip())
    assert path.is_relative_to(home)
    assert (path / "metrics.parquet").exists()
    return path


def test_the_python_of_the_readme_trains_a_network_of_the_reader(tmp_path):
    code, _ = python_blocks()
    code = code.replace(
        "model = nn.Sequential(", f"{_BEFORE}\nmodel = nn.Sequential(\n    Scale(),", 1
    )
    code = code.replace("accumulate=2)", 'accumulate=2, resources_per_stage={"CPU": 0.1})', 1)
    code += "\nassert result.model[0].factor != 1 and result.metrics['epoch'] == 5\n"
    run(code, tmp_path)


def test_the_python_of_the_readme_solves_a_problem_to_its_certificate(tmp_path):
    _, code = python_blocks()
    rows = "".join(f"{(-1) ** i} {1 + i % 3}:{0.1 * i:.1f} {4 + i % 5}:1\n" for i in range(60))
    (tmp_path / "a9a.bz2").write_bytes(bz2.compress(rows.encode()))
    code = code.replace("workers=4,", 'workers=2, resources_per_worker={"CPU": 0.1},', 1)
    code += "\nassert result.metrics['duality_gap'] <= 1e-8, result.metrics\n"
    code += "assert result.summary['ended_by'] == 'tolerance'\n"
    run(code, tmp_path)
