"""A Ray cluster: found or started, and checked before it is given work. Nothing is sent to anybody else."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from taskvec.errors import InputError, TaskvecError, optional
from taskvec.reading import shown
from taskvec.runs.executors import host, machine
from taskvec.studies.files import LATE, Files
from taskvec.studies.storage import open_files
from taskvec.studies.trial import Plan
from taskvec.urls import said

_ADDRESS = re.compile(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})")

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""No figures of usage are collected or sent, and no warnings are written among the lines of a run."""

_DECISIVE = ("ATEN_", "BLIS_", "HF_HUB_OFFLINE", "MKL_", "NUMBA_", "OMP_", "OPENBLAS_", "TORCH_")
"""What variables of the environment begin with that may change results, by rounding."""

_TRY = """
import json, logging, sys
try:
    import ray
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
    ray.shutdown()
    told = ["", ""]
except BaseException as error:
    told = [type(error).__name__, str(error)]
print("\\n" + json.dumps(told))
"""
_SECONDS = 60.0
"""That a cluster may take to answer."""


@dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Args:
        name: of its host, with the address.
        here: the driver runs there.
        cores, devices: that Ray hands out.
    """

    key: str
    name: str
    here: bool
    cores: int
    devices: int


class Cluster:
    """A cluster that this process is connected to.

    Args:
        ray: the package.
        where: in words.
    """

    def __init__(self, ray: Any, where: str) -> None:
        self.ray, self.where = ray, where

    def nodes(self) -> list[Node]:
        """Those that are there, in a fixed order."""
        own = self.ray.get_runtime_context().get_node_id()
        found = [_node(each, own) for each in self.ray.nodes() if each["Alive"]]
        return sorted(found, key=lambda node: (not node.here, node.name, node.key))

    def on(self, node: Node, **needs: float) -> dict[str, Any]:
        """Options of Ray for what runs on a node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return {**needs, "scheduling_strategy": NodeAffinitySchedulingStrategy(node.key, soft=False)}

    def check(self, folder: Path, storage: str | None) -> None:
        """Make sure that every node computes the same as this process, and sees the files of the run.

        Raises: InputError naming the nodes that do not.
        """
        self._check_machines()
        with _made(folder):
            self._check_files(folder.absolute(), storage)

    def check_inputs(self, plan: Plan, digests: Mapping[str, str]) -> None:
        """Make sure that the model and the data of a plan are the same on every node.

        Raises: InputError naming the nodes where they are not.
        """
        there = [node for node in self.nodes() if not node.here]
        variables = decisive(plan)
        lacks = self._ask(there, host.lack, self.ray.put(plan), dict(digests), str(Path.cwd()), variables)
        _refuse((node, what) for node, what in zip(there, lacks, strict=True) if what)

    def _check_machines(self) -> None:
        pickling: Any = self.ray.cloudpickle
        pickling.register_pickle_by_value(machine)  # a node may have another taskvec, or none
        try:
            here, nodes = machine.describe(), self.nodes()
            told = self._ask(nodes, machine.describe)
        finally:
            pickling.unregister_pickle_by_value(machine)
        _refuse(
            (node, _differing(there, here)) for node, there in zip(nodes, told, strict=True) if there != here
        )

    def _check_files(self, folder: Path, storage: str | None) -> None:
        files, nodes, token = open_files(folder, storage), self.nodes(), token_hex(4)
        first, marks = f"{token}-first", [f"{token}-{number}" for number in range(len(nodes))]
        place = said(storage) if storage else str(folder)
        try:
            files.probe(first)
            refs = [
                self._task(node, host.leave_mark).remote(folder, storage, first, mark)
                for node, mark in zip(nodes, marks, strict=True)
            ]
            wrong = [
                what or self._unseen(files, mark) for what, mark in zip(self._got(refs), marks, strict=True)
            ]
        finally:
            for mark in (first, *marks):
                files.unprobe(mark)
        blind = f"{place}: what this machine writes there is not seen; "
        remedy = (
            "give a storage that every node sees"
            if storage
            else "give a folder that every node sees under this path, or --storage URL"
        )
        _refuse(
            (node, blind + remedy if what == host.BLIND else what)
            for node, what in zip(nodes, wrong, strict=True)
            if what
        )

    def _unseen(self, files: Files, mark: str) -> str:
        return "" if files.waits_for(mark, LATE) else host.BLIND

    def _ask(self, nodes: Sequence[Node], function: Callable[..., Any], *arguments: object) -> list[Any]:
        """What a function returns on each of some nodes."""
        return self._got([self._task(node, function).remote(*arguments) for node in nodes])

    def _task(self, node: Node, function: Callable[..., Any]) -> Any:
        return self.ray.remote(function).options(**self.on(node, num_cpus=0), max_retries=0)

    def _got(self, refs: Sequence[Any]) -> list[Any]:
        from ray.exceptions import RayError

        try:
            return list(self.ray.get(list(refs), timeout=10 * _SECONDS))
        except RayError as error:
            raise InputError(
                f"Ray, {self.where}: a node could not be asked what it has ({_first_line(error)}); see "
                "whether all its nodes are well, with: ray status"
            ) from None


@contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """A cluster: the one at an address; for ``auto`` that of ``RAY_ADDRESS``, one that runs here, or a new
    one with the cores of this machine, which ends with the context.

    Raises: MissingExtra without Ray; InputError where no cluster answers.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    ray = optional("ray", "--ray: Ray is not installed; pip install 'taskvec[ray]'")
    place = _found(address)
    _hush()
    try:
        yield Cluster(ray, _join(ray, place))
    finally:
        ray.shutdown()


def _join(ray: Any, place: str | None) -> str:
    """Connect this process to a cluster, or start one; which it is, in words."""
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if place is not None:
        _try(place)
        ray.init(address=place, **quiet)
        return f"the cluster at {place}"
    try:
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            object_store_memory=200 << 20,
            **quiet,
        )
    except Exception as error:  # as Ray raises it, where a machine is too busy or forbids something
        raise TaskvecError(
            f"Ray: no cluster could be started on this machine ({_first_line(error)}); run it again, or use "
            "--workers in place of --ray"
        ) from None
    return "a new cluster on this machine"


def _hush() -> None:
    """Keep what nodes say of workers that died off standard error; the run says it.

    Ray writes it there whatever it is told of logs.
    """
    with suppress(ImportError, AttributeError):
        import ray._private.worker as driver

        if hasattr(driver, "print_to_stdstream"):
            driver.print_to_stdstream = lambda *_, **__: None


def decisive(plan: Plan) -> dict[str, str]:
    """The variables of this environment of which results depend: for rounding, and for where data lie."""
    named = set(re.findall(r"\$\{?(\w+)", plan.suite.model_dump_json()))
    return _variables(named)


def settings_of() -> tuple[str, dict[str, str]]:
    """Where this process works, and the variables of its environment of which results depend."""
    return str(Path.cwd()), _variables(set())


def _variables(named: Set[str]) -> dict[str, str]:
    cores = str(os.cpu_count() or 1)
    threads = {"OMP_NUM_THREADS": cores, "OMP_WAIT_POLICY": "PASSIVE"}  # which Ray would set to 1
    chosen = {
        name: value for name, value in os.environ.items() if name.startswith(_DECISIVE) or name in named
    }
    return {**threads, **chosen}


def _found(address: str | None) -> str | None:
    """The address of a cluster that should answer; none where there is none yet."""
    given = address if address not in (None, "auto") else os.environ.get("RAY_ADDRESS", "auto")
    if given == "local":
        return None
    if given != "auto":
        if not (match := _ADDRESS.fullmatch(str(given))) or int(match["port"]) > 65535:
            raise InputError(
                f"Ray address {shown(str(given))}: expected HOST:PORT, as `ray start --head` prints it, on a "
                "machine that is a node of that cluster"
            )
        return str(given)
    from ray._private.services import canonicalize_bootstrap_address

    try:
        place: str | None = canonicalize_bootstrap_address("auto", None)
    except Exception:  # as Ray says that there is none
        return None
    return place if place and _listens(place) else None


def _listens(place: str) -> bool:
    name, _, port = place.rpartition(":")
    try:
        socket.create_connection((name.strip("[]"), int(port)), timeout=5.0).close()
    except OSError:
        return False
    return True


def _try(place: str) -> None:
    """Connect in another process: Ray waits minutes for what does not answer, and then ends its process.

    Raises: InputError.
    """
    if not _listens(place):
        raise InputError(
            f"Ray, {place}: no cluster answers there; start one (ray start --head), or leave the address out"
        )
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY, place],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
        kind, text = json.loads(done.stdout.decode(errors="replace").rstrip().rpartition("\n")[2])
    except subprocess.TimeoutExpired:
        kind, text = "TimeoutError", f"within {_SECONDS:.0f} seconds"
    except ValueError:
        kind, text = "Error", f"exit code {done.returncode}"
    if kind:
        raise InputError(
            f"Ray, {place}: no cluster that can be used from this machine answers there "
            f"({kind}: {_first_line(text)}); expected one of this version of Ray and Python, of which this "
            "machine is a node"
        )


def _node(told: Mapping[str, Any], own: str) -> Node:
    resources = told["Resources"]
    name, place = told["NodeManagerHostname"], told["NodeManagerAddress"]
    return Node(
        told["NodeID"],
        f"{name} ({place})",
        told["NodeID"] == own,
        int(resources.get("CPU", 0)),
        int(resources.get("GPU", 0)),
    )


def _differing(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """The first thing that is another one there."""
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if names == [machine.CODE]:
        return f"has other source files of taskvec {here.get('taskvec')} than this machine; install the same"
    name = next(name for name in names if name != machine.CODE)
    return (
        f"has {name} {there.get(name, '(none)')}, expected {here.get(name, '(none)')}, as on this machine; "
        "install the same there"
    )


def _refuse(complaints: Iterable[tuple[Node, str]]) -> None:
    """Raise an error that names the first node, and how many more there are."""
    if found := list(complaints):
        node, what = found[0]
        others = f" ({len(found) - 1} more nodes)" if len(found) > 1 else ""
        raise InputError(f"node {node.name}: {what}{others}")


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder, which is removed again if it was not there and nothing is in it."""
    there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not there and not any(folder.iterdir()):
            folder.rmdir()


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[
        :200
    ]
