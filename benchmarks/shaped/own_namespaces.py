"""A program in namespaces of its own: networks, processes and mounts that end with it.

The kernel takes all of it down when the first process in there ends, however it ends: every
process, and with them every namespace, link, qdisc and mount. There is nothing to clean up by hand,
and so nothing to forget, on an error, on Ctrl-C or on SIGKILL.

    caller ── setpriv ── unshare ── the program, pid 1 in there
              killed with the caller  killed with unshare: takes all others with it
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

__all__ = ["private_places", "refusal", "run_in_own_namespaces"]

_NEEDED = ("ip", "tc", "unshare", "setpriv")


def refusal() -> str | None:
    """Return in one line why this machine cannot have such a network; None: it can."""
    absent = [name for name in _NEEDED if shutil.which(name) is None]
    if absent:
        return (
            f"a shaped network needs {', '.join(_NEEDED)} (iproute2 and util-linux), "
            f"but {', '.join(absent)} cannot be found"
        )
    if os.geteuid() != 0:
        return "a shaped network needs namespaces and so root, but this is another user"
    return None


def run_in_own_namespaces(command: Sequence[str]) -> int:
    """Run a program as pid 1 of new network, pid and mount namespaces; return its exit code.

    SIGTERM and SIGINT end it with all that it has started.
    """
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *unshare, "--", *command])
        try:
            return process.wait()
        finally:
            process.kill()
            process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def private_places(names: Mapping[str, str]) -> None:
    """Put files of our own where namespaces, shared memory and names of hosts are looked for.

    Args:
        names: addresses of hosts, by name. Nobody is asked for others: a server that cannot be
            reached would be waited for.
    """
    for place in ("/run", "/dev/shm"):  # noqa: S108 - this is the point
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    Path("/run/netns").mkdir()
    hosts = {"localhost": "127.0.0.1", socket.gethostname(): "127.0.0.1", **names}
    lines = [f"{address} {name}\n" for name, address in hosts.items()]
    for name, text in (("hosts", "".join(lines)), ("resolv.conf", "")):
        ours = Path("/run", name)
        ours.write_text(text)
        subprocess.run(["mount", "--bind", str(ours), f"/etc/{name}"], check=True)


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise SystemExit(128 + number)
