"""A LAN of hosts on this machine, each of them made of namespaces.

A host has its own network, processes, mounts, name, sshd, /root, /tmp and /dev/shm. So what is run
there sees a machine: `ray up` comes over SSH, and `ray stop` finds nobody else's Ray.

    the test ── the LAN: a switch ──┬── host0 10.79.0.1: host.sh, sshd, what is run there
                                    └── host1 10.79.0.2: ...

All of it ends with the LAN's first process, and that with the test, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from benchmarks.shaped.lan import Lan, run
from tests.helpers import wait_until_gone

__all__ = ["PROJECT", "Hosts", "missing", "until"]

TOOLS = ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "unshare", "nsenter", "setpriv")
PROJECT = Path(__file__).parents[2]
_SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_OWN = ["--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
_SWITCH = """
set -e
mount -t tmpfs tmpfs /run
mkdir /run/netns /run/sshd
mount --bind "$1" /etc/hosts
mount --bind /dev/null /etc/resolv.conf  # a name is known or not: nobody is asked
echo up
while :; do sleep 3600 & wait $! || :; done
"""


def missing() -> str | None:
    """Return in a line why this machine cannot have such hosts; None: it can."""
    if os.geteuid() != 0:
        return "hosts made of namespaces need root, but this is another user"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=_SBIN) is None]
    if absent:
        return (
            f"hosts made of namespaces need {', '.join(TOOLS)}, but {', '.join(absent)} cannot be "
            "found: apt-get install openssh-server openssh-client rsync iproute2 util-linux"
        )
    return None


class Hosts:
    """Some hosts, as a context.

    Args:
        cpus: that Ray shall see on each of them.
        shared: an empty folder that all of them see, in the same place as here.
    """

    def __init__(self, cpus: Sequence[int], shared: Path) -> None:
        self._lan = Lan(hosts=len(cpus))
        self._cpus = cpus
        self._shared = shared
        self._keys = shared / "keys"
        self._processes: list[subprocess.Popen[str]] = []
        self._first: list[int] = []
        self._spaces: set[str] = set()

    @property
    def addresses(self) -> list[str]:
        """The hosts' addresses, by number."""
        return self._lan.addresses

    @property
    def key(self) -> Path:
        """The private key that opens every host to root."""
        return self._keys / "user"

    def __enter__(self) -> Self:
        try:
            self._write_keys()
            names = str(self._keys / "names")
            command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", *_OWN]
            lan = self._start([*command, "bash", "-c", _SWITCH, "switch", names], children=1)
            inside = ["nsenter", f"--target={lan}", "--all"]
            run([[*inside, *command] for command in self._lan.build()])
            for index in range(len(self._cpus)):
                first = ["unshare", *_OWN, "bash", str(Path(__file__).with_name("host.sh"))]
                host = [self._lan.names[index], self.addresses[index], str(self._keys)]
                command = self._lan.inside(index, [*first, *host, *_common(self._shared)])
                self._start([*inside, *command], children=2)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every host with all that runs there."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.kill()
        for pid in self._first:
            wait_until_gone(pid)
        for process in processes:
            process.communicate()

    @contextlib.contextmanager
    def running(self, host: int, command: str) -> Iterator[subprocess.Popen[str]]:
        """Run a line of a login shell on a host beside the block, which may read what it writes.

        What is still running after it has its host's time to end.
        """
        inside = ["nsenter", f"--target={self._first[host + 1]}", "--all", "--wd=/root"]
        shell = ["env", "-i", "HOME=/root", "TERM=dumb", "bash", "--login", "-c", command]
        process = subprocess.Popen(
            [*inside, *shell],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, host: int, command: str, *, tries: int = 1) -> str:
        """Run a line of a login shell on a host; return what it wrote.

        Args:
            host: where.
            command: that is run.
            tries: until it succeeds. Ray gives a node 30 s to start, which a busy machine may miss.

        Raises:
            AssertionError: it failed; the message has what it wrote.
        """
        for _ in range(tries):
            with self.running(host, command) as process:
                said, _ = process.communicate(timeout=600)
            if process.returncode == 0:
                return said
        raise AssertionError(f"{command}: exit code {process.returncode}\n{said}")

    def kill(self, pid: int) -> None:
        """Kill a process of a host, by its number here."""
        assert pid in self.processes()
        os.kill(pid, signal.SIGKILL)

    def kill_node(self, raylet: int) -> None:
        """Kill a Ray node, as when its machine is gone: the raylet and all that it has started."""
        for pid in [raylet, *_children(raylet)]:
            self.kill(pid)

    def processes(self, host: int | None = None) -> dict[int, str]:
        """Return the names of a host's processes, or of all, by their numbers here."""
        spaces = self._spaces if host is None else {_space(self._first[host + 1])}
        return {pid: name for pid, name, space in _running() if space in spaces}

    def raylets(self, host: int) -> list[int]:
        """Return the raylets of a host, one a Ray node, by their numbers here; the oldest first."""
        found = [pid for pid, name in self.processes(host).items() if name == "raylet"]
        return sorted(found, key=_started)  # numbers begin again when they have run out

    # ------------------------------------------------------------------ inside

    def _write_keys(self) -> None:
        self._keys.mkdir()
        for name in ("user", "host"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._keys / name)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        names = {
            "localhost": "127.0.0.1",
            **dict(zip(self._lan.names, self.addresses, strict=True)),
        }
        lines = [f"{address} {name}\n" for name, address in names.items()]
        (self._keys / "names").write_text("".join(lines))
        for name, cpus in zip(self._lan.names, self._cpus, strict=True):
            settings = {
                "PATH": f"{Path(sys.executable).parent}:{_SBIN}",
                "PYTHONPATH": str(PROJECT),
                "OMP_NUM_THREADS": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": cpus}),
                # Ray's workers yield to everybody, and so to the other tests.
                "RAY_worker_niceness": "0",
                # Autoscalers look every 5 s, and miss a node after 30.
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
            }
            lines = [f"export {key}={shlex.quote(value)}\n" for key, value in settings.items()]
            (self._keys / f"{name}.profile").write_text("".join(lines))

    def _start(self, command: list[str], children: int) -> int:
        """Start the first process of new namespaces; return its number here."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PATH": _SBIN},
        )
        self._processes.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == "up\n", said + process.communicate()[0]
        pid = process.pid
        for _ in range(children):
            pid = _children(pid)[0]
        self._first.append(pid)
        self._spaces.add(_space(pid))
        return pid


def until(there: Callable[[], object], what: str, timeout_s: float = 600) -> None:
    """Wait for what another process brings about."""
    deadline = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


def _started(pid: int) -> int:
    """Return when a process has started, in clock ticks since the machine has."""
    behind_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(behind_name[19])


def _common(shared: Path) -> list[str]:
    """Return the folders that all hosts have from this machine."""
    return [str(shared), str(PROJECT), sys.prefix, sys.base_prefix]


def _running() -> Iterator[tuple[int, str, str]]:
    """Give number, name and namespace of every process that has not ended."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if "State:\tZ" not in (entry / "status").read_text():
                    yield int(entry.name), (entry / "comm").read_text().strip(), _space(entry.name)
            except OSError:  # it has ended meanwhile
                continue


def _space(pid: int | str) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())
