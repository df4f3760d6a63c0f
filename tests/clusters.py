"""A Ray cluster of several nodes on this machine, in a process of its own: it ends with that process.

``python clusters.py NODES`` prints its address, and then does what it is told, a line each: ``end NUMBER``
kills a node, ``add NAME=VALUE…`` adds one with these variables in its environment.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

QUIET = {
    # A head that is told to send no figures of usage sends a line that says so; this one reaches nobody.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass
class Cluster:
    """A cluster that runs."""

    address: str
    process: int
    _told: IO[str]
    _says: IO[str]

    def tell(self, line: str) -> None:
        """Have something done, and wait until it is."""
        self._told.write(line + "\n")
        self._told.flush()
        if (answer := self._says.readline()) != "done\n":
            raise RuntimeError(f"{line}: {answer}")

    def end(self, node: int) -> None:
        """Kill a node; the head is number 0."""
        self.tell(f"end {node}")

    def add(self, variables: Mapping[str, str] | None = None) -> None:
        """Add a node."""
        self.tell(f"add {json.dumps(dict(variables or {}))}")

    def workers(self) -> list[int]:
        """The processes that hold workers of taskvec."""
        family = {self.process}
        found = []
        parents = _parents()
        for _ in range(6):
            family |= {child for child, parent in parents.items() if parent in family}
        for child in family:
            with suppress(OSError):
                if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::Host"):
                    found.append(child)
        return sorted(found)


def _parents() -> dict[int, int]:
    """Of every process of this machine."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return found


@contextmanager
def cluster(nodes: int = 2) -> Iterator[Cluster]:
    """A cluster of nodes with one core each; on a machine that is busy Ray may need another try."""
    with ExitStack() as stack:
        for left in (2, 1, 0):
            try:
                found = stack.enter_context(_cluster(nodes))
                break
            except RuntimeError:
                if not left:
                    raise
        yield found


@contextmanager
def _cluster(nodes: int) -> Iterator[Cluster]:
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, str(nodes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **QUIET},
        )
        assert process.stdin and process.stdout
        try:
            address = process.stdout.readline().strip()
            if not address:
                errors.seek(0)
                raise RuntimeError(errors.read()[-2000:])
            yield Cluster(address, process.pid, process.stdin, process.stdout)
        finally:
            process.stdin.close()
            try:
                process.wait(60)
            finally:
                process.kill()
                process.wait()
                process.stdout.close()


def main(nodes: int) -> None:
    """Run a cluster until nothing more is told."""
    from ray.cluster_utils import Cluster as Machines

    Path(import_module("ray._common.utils").get_default_ray_temp_dir()).mkdir(
        exist_ok=True
    )  # where Ray notes the address, and takes it for granted
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # names of sockets are short
    machines: Any = Machines()
    try:
        made = [machines.add_node(num_cpus=1, temp_dir=folder, include_dashboard=False)]
        made += [machines.add_node(num_cpus=1) for _ in range(nodes - 1)]
        sys.stdout.write(f"{machines.address}\n")
        sys.stdout.flush()
        for line in sys.stdin:
            what, _, rest = line.strip().partition(" ")
            if what == "end":
                machines.remove_node(made[int(rest)], allow_graceful=False)
            else:
                made.append(machines.add_node(num_cpus=1, env_vars=json.loads(rest)))
            sys.stdout.write("done\n")
            sys.stdout.flush()
    finally:
        machines.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
