"""The commands that make a machine one of a cluster, and the files that it needs for it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from raylab.clusters.order import ClusterOrder
from raylab.clusters.templates import fill_words, read_data

__all__ = ["AWS_PARAMETER", "TOKEN", "machine_values"]

TOKEN = "~/.ray/auth_token"  # noqa: S105 - where it is, not what it is
"""Where Ray looks for the token, on every machine."""
AWS_PARAMETER = "resolve:ssm:"
"""What an image of AWS begins with that is the name of a parameter."""

_FOLDER = "~/raylab-env"


def machine_values(order: ClusterOrder, image: str = "") -> dict[str, Any]:
    """Return what stands in a `ray up` file of any provider.

    Args:
        order: what is wanted.
        image: of the machines.
    """
    commands = read_data("commands.yaml")
    wheel = None if order.wheel is None else f"~/{order.wheel.name}"
    packages = wheel or shlex.quote(order.package if order.environment is None else "")
    words = {
        "folder": shell_path(order.environment or _FOLDER),
        "packages": f"{shlex.quote(f'ray[default]=={order.ray}')} {packages}",
        "wheel": wheel or "",
        "image_parameter": image,
    }
    if order.environment is not None:
        setup = list(commands["path"])
        head_setup: list[str] = []
    else:
        setup = [*commands["environment"], *(commands["wheel"] if wheel else ()), *commands["path"]]
        head_setup = commands["head"][order.provider]
    local = "_local" if order.provider == "local" else ""
    head_start = [commands["stop"], commands["head_start" + local]]
    if image.startswith(AWS_PARAMETER):
        head_start.insert(1, commands["same_image"])
    idle = float(order.idle_minutes)
    mounts = {TOKEN: order.token_file or TOKEN}
    if order.wheel is not None:
        mounts[f"~/{order.wheel.name}"] = str(Path(order.wheel).absolute())
    return {
        "name": order.name,
        "idle_minutes": int(idle) if idle.is_integer() else idle,
        "ssh_user": order.ssh_user or "ubuntu",
        "file_mounts": mounts,
        "setup_commands": [fill_words(each, words) for each in setup],
        "head_setup_commands": [fill_words(each, words) for each in head_setup],
        "head_start_commands": [fill_words(each, words) for each in head_start],
        "worker_start_commands": [commands["stop"], commands["worker_start"]],
    }


def shell_path(path: str) -> str:
    """Return a path for a shell, which shall still see the ~ at its beginning."""
    if path.startswith("~/"):
        return "~/" + shlex.quote(path[2:])
    return shlex.quote(path)
