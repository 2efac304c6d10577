"""What the README shows runs as it stands, from a script whose classes nobody can import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray

pytestmark = [pytest.mark.actor, pytest.mark.usefixtures("session")]

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


def test_the_python_of_the_readme_trains_a_network_of_the_reader(tmp_path):
    (code,) = python_blocks()
    code = code.replace(
        "model = nn.Sequential(", f"{_BEFORE}\nmodel = nn.Sequential(\n    Scale(),", 1
    )
    code = code.replace("accumulate=2)", 'accumulate=2, resources_per_stage={"CPU": 0.1})', 1)
    code += "\nassert result.model[0].factor != 1 and result.metrics['epoch'] == 5\n"
    code += "print('trained', result.path)\n"
    done = subprocess.run(
        [sys.executable, "-"],
        input=code,
        env={
            **os.environ,
            "HOME": str(tmp_path),  # where results go; Ray's token stays where it is
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
    assert path.is_relative_to(tmp_path)
    assert (path / "metrics.parquet").exists()
