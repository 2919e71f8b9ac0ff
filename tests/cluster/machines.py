"""Machines that are namespaces of this one: each with its own network, processes, home and sshd."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
NETWORK = "10.77.0"
OPERATOR, HEAD, WORKER = "operator", "n1", "n2"
ADDRESSES = {OPERATOR: f"{NETWORK}.1", HEAD: f"{NETWORK}.11", WORKER: f"{NETWORK}.12"}

SET_UP = """
mount -t proc proc /proc
hostname {name}
mount --bind {folder}/{name}/passwd /etc/passwd
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/{name}/ray /tmp/ray
mount --bind {folder}/shared /mnt/shared
exec {command}
"""
PROFILE = """
export PATH={programs}:{python}:$PATH OMP_NUM_THREADS=1
export RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
"""
SSHD = """
Port 22
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""


@dataclass(frozen=True)
class Machine:
    """A machine: `run` starts a program on it, `cut_off` and `heal` act on its network."""

    name: str
    home: Path
    pid: int
    """Its first process."""

    def command(self, *command: object) -> list[str]:
        """Return the command of this machine that runs one on that."""
        words = ["nsenter", "--target", str(self.pid), "--all", f"--wd={ROOT}", "--"]
        return [*words, *map(str, command)]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a login, without what this machine's user has set."""
        path = f"{self.home.parent}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {"HOME": str(self.home), "PATH": path, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
        return env | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"} | more

    def run(self, *command: object, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a program and return its output; `more` are variables of its environment."""
        return subprocess.run(
            self.command(*command),
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start(self, *command: object, **more: str) -> subprocess.Popen[str]:
        """Start a program."""
        return subprocess.Popen(
            self.command(*command),
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def cut_off(self) -> None:
        """Take the machine from the network."""
        _ip("-n", _namespace(self.name), "link", "set", "eth0", "down")

    def heal(self) -> None:
        """Connect the machine again."""
        _ip("-n", _namespace(self.name), "link", "set", "eth0", "up")


@contextmanager
def machines(folder: Path) -> Iterator[dict[str, Machine]]:
    """Make an operator's machine and two nodes, which share `folder`/shared as /mnt/shared."""
    _write_files(folder)
    with ExitStack() as stack:
        for name in ADDRESSES:
            stack.enter_context(_network(name))
        yield {name: stack.enter_context(_machine(name, folder)) for name in ADDRESSES}


def _write_files(folder: Path) -> None:
    for sub in ("shared", "bin", *(f"{name}/ray" for name in ADDRESSES)):
        (folder / sub).mkdir(parents=True)
    for place in ("/mnt/shared", "/tmp/ray", "/run/sshd"):
        Path(place).mkdir(parents=True, exist_ok=True)
    hosts = [f"{address} {name}\n" for name, address in ADDRESSES.items()]
    (folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *hosts]))
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")]
    subprocess.run(keygen, check=True)
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    sudo = folder / "bin" / "sudo"
    sudo.write_text('#!/bin/sh\nexec "$@"\n')
    sudo.chmod(0o755)
    for name in ADDRESSES:
        home = folder / name
        (home / "passwd").write_text(f"root:x:0:0:root:{home}:/bin/bash\nsshd:x:100:65534::/:/\n")
        profile = PROFILE.format(programs=folder / "bin", python=Path(sys.executable).parent)
        (home / ".profile").write_text(profile)
        (home / "ganray").symlink_to(ROOT)  # where the image has it


@contextmanager
def _network(name: str) -> Iterator[None]:
    """Make a network namespace; the operator's has the switch that all are connected to."""
    namespace, switch, address = _namespace(name), _namespace(OPERATOR), f"{ADDRESSES[name]}/24"
    _ip("netns", "add", namespace)
    try:
        _ip("-n", namespace, "link", "set", "lo", "up")
        if name == OPERATOR:
            _ip("-n", namespace, "link", "add", "eth0", "type", "bridge")
        else:
            wire = ["type", "veth", "peer", "name", "eth0", "netns", namespace]
            _ip("-n", switch, "link", "add", name, *wire)
            _ip("-n", switch, "link", "set", name, "master", "eth0", "up")
        _ip("-n", namespace, "address", "add", address, "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        yield
    finally:
        _ip("netns", "delete", namespace)


@contextmanager
def _machine(name: str, folder: Path) -> Iterator[Machine]:
    command = f"/usr/sbin/sshd -D -f {folder}/sshd_config" if name != OPERATOR else "sleep infinity"
    script = SET_UP.format(name=name, folder=folder, command=command)
    words = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
    process = subprocess.Popen(
        ["ip", "netns", "exec", _namespace(name), *words, "bash", "-ec", textwrap.dedent(script)]
    )
    try:
        while not (children := psutil.Process(process.pid).children()):
            assert process.poll() is None
        yield Machine(name, folder / name, children[0].pid)
    finally:
        process.kill()
        process.wait()


def _namespace(name: str) -> str:
    return f"ganray-{name}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
