"""Workers as Ray actors, on the nodes of a cluster."""

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from taskvec.errors import DiskFull, InputError, TaskvecError
from taskvec.processes import Gone
from taskvec.runs.executors.cluster import Cluster, Node, connected, decisive
from taskvec.runs.executors.executor import Work
from taskvec.runs.executors.host import Host
from taskvec.runs.executors.messages import Failed, Message, Setup
from taskvec.runs.executors.spread import Link, Spread
from taskvec.runs.jobs import Job, Outcome

_FULL = (errno.ENOSPC, errno.EDQUOT)

_AWAKE = 5.0
"""Seconds that an actor may take to answer before it is ended."""


class Actor:
    """A worker in an actor. What the driver answers is an argument, what the worker says next the result."""

    def __init__(
        self, cluster: Cluster, node: Node, number: int, setup: Setup, needs: dict[str, float]
    ) -> None:
        self._ray, self.node = cluster.ray, node
        self.name = f"worker {number} on {node.name}"
        options = {**cluster.on(node, **needs), "max_restarts": 0, "max_task_retries": 0}
        made = self._ray.remote(Host).options(**options)
        self._actor = made.remote(str(Path.cwd()), decisive(setup.plan))
        self.said: Any = None
        """What Ray promises of what it says next; none while it waits for an answer."""
        self.answer(setup)

    def answer(self, value: object) -> None:
        """Answer what it said last; where it is gone, that is heard next."""
        self.said = self._actor.turn.remote(value)

    def listen(self) -> Message | Gone:
        """What it says, or how it ended."""
        from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

        said, self.said = self.said, None
        try:
            message: Message = self._ray.get(said)
        except OutOfMemoryError:
            return Gone("was ended by Ray, as the memory of its node was full")
        except RayTaskError as error:
            return Failed(TaskvecError(f"{self.name}: {_first_line(error.cause)}"))
        except RayError as error:
            return Gone("lost its node" if "node" in type(error).__name__.lower() else "ended")
        return Failed(self._placed(message.error)) if isinstance(message, Failed) else message

    def close(self) -> None:
        """End it now, whatever it is at; one that is at nothing clears up first."""
        if self.said is None:
            with suppress(Exception):
                self._ray.get(self._actor.turn.remote(None), timeout=_AWAKE)
        with suppress(Exception):
            self._ray.kill(self._actor)

    def _placed(self, error: Exception) -> Exception:
        """An error that may be of the machine alone names it."""
        if isinstance(error, OSError):
            text = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
            return (DiskFull if error.errno in _FULL else TaskvecError)(f"{self.node.name}: {text}")
        if isinstance(error, InputError):
            return type(error)(f"{self.node.name}: {error}")
        return error


class Actors:
    """The pool of such workers: as many on every node as it has cores, or devices.

    Args:
        on_devices: each has a device for itself.
    """

    def __init__(self, cluster: Cluster, *, on_devices: bool) -> None:
        self._cluster, self._on_devices = cluster, on_devices
        self._at: dict[Actor, Node] = {}
        self._full: dict[str, Exception] = {}
        """Nodes whose disk is full, with what they said."""

    def slots(self) -> int:
        """How many workers have room. Raises: InputError for none."""
        count = sum(map(self._slots, self._cluster.nodes()))
        if not count:
            what = "CUDA device" if self._on_devices else "core"
            raise InputError(
                f"Ray, {self._cluster.where}: has no {what} for a worker; add a node that has one"
            )
        return count

    def start(self, number: int, setup: Setup) -> Link:
        """A new worker, where most room is. Raises: TaskvecError where no node is left."""
        used = Counter(node.key for node in self._at.values())
        nodes = [node for node in self._cluster.nodes() if self._slots(node) and node.key not in self._full]
        if not nodes:
            raise next(iter(self._full.values()), None) or TaskvecError(
                f"Ray, {self._cluster.where}: has no node left for a worker; what is done already stays"
            )
        node = max(nodes, key=lambda node: self._slots(node) - used[node.key])
        needs = {"num_cpus": 1.0, "num_gpus": 1.0} if self._on_devices else {"num_cpus": 1.0}
        actor = Actor(self._cluster, node, number, setup, needs)
        self._at[actor] = node
        return actor

    def wait(self, links: Sequence[Link]) -> Iterable[tuple[Link, Message | Gone]]:
        """What some workers say, once at least one of them says something or is gone."""
        said = {link.said: link for link in links if isinstance(link, Actor) and link.said is not None}
        ready, _ = self._cluster.ray.wait(list(said), num_returns=1)
        for each in ready:
            link = said[each]
            message = link.listen()
            if isinstance(message, Failed) and isinstance(message.error, DiskFull):
                self._full[link.node.key] = message.error
                message = Gone("found no space on its disk")
            if isinstance(message, Gone):
                self._at.pop(link, None)
            yield link, message

    def _slots(self, node: Node) -> int:
        return node.devices if self._on_devices else node.cores


class OnRay:
    """The executor of a cluster.

    Args:
        count: of workers, at most; none for as many as have room.
    """

    def __init__(self, cluster: Cluster, count: int | None, *, on_devices: bool) -> None:
        self._cluster, self._actors = cluster, Actors(cluster, on_devices=on_devices)
        slots = self._actors.slots()
        self._count = min(count or slots, slots)

    def told(self) -> str:
        """What works, and where, in a sentence."""
        nodes = len(self._cluster.nodes())
        on = f"{self._cluster.where}{f' of {nodes} nodes' if nodes > 1 else ''}"
        return f"Ray: {self._count} worker{'s' if self._count > 1 else ''} on {on}"

    @contextmanager
    def open(self, work: Work) -> Iterator[Callable[[Job], Outcome]]:
        """As every executor."""
        self._cluster.check_inputs(work.lab.plan, work.lab.digests)
        with Spread(self._actors, self._count).open(work) as outcome_of:
            yield outcome_of


@contextmanager
def on_ray(
    address: str | None, count: int | None, folder: Path, storage: str | None, *, device: str = "cpu"
) -> Iterator[OnRay]:
    """An executor whose workers are on the nodes of a cluster, all of which were found fit.

    Args:
        address: see :func:`taskvec.runs.executors.cluster.connected`.
        count: of workers, at most; none for as many as the cluster has cores, or devices.
        folder: of the run.
        storage: a URL where files lie that all nodes see; none for the run folder.
        device: where models compute; each worker has one for itself if that is ``cuda``.

    Raises: MissingExtra, InputError.
    """
    on_devices = device.startswith("cuda")
    if device.startswith("cuda:"):
        raise InputError(f"device {device}: Ray gives each worker a GPU of its own, expected cuda")
    with connected(address) as cluster:
        cluster.check(folder, storage)
        yield OnRay(cluster, count, on_devices=on_devices)


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
