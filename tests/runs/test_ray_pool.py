"""Where workers are started, and what becomes of what they say, on nodes that only seem to be there."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from taskvec.errors import DiskFull, InputError, TaskvecError
from taskvec.processes import Gone
from taskvec.runs.executors import actors
from taskvec.runs.executors.actors import Actor, Actors
from taskvec.runs.executors.cluster import Cluster, Node
from taskvec.runs.executors.messages import Failed, Ready

pytest.importorskip("ray")


@dataclass
class Seeming:
    """As much of Ray as actors need: what they say was written before."""

    says: dict[str, list[object]]
    killed: list[str] = field(default_factory=list)

    def remote(self, _: type) -> "Seeming":
        return self

    def options(self, *, node: str, **_: object) -> Callable[..., Any]:
        return _Options(self, node)  # type: ignore[return-value]

    def get(self, promised: "_Promise", timeout: float = 0) -> object:
        said = promised.says.pop(0) if promised.says else None
        if isinstance(said, Exception):
            raise said
        return said

    def wait(self, promised: Sequence[object], num_returns: int) -> tuple[list[object], list[object]]:
        return list(promised[:num_returns]), list(promised[num_returns:])

    def kill(self, actor: "_Options") -> None:
        self.killed.append(actor.node)


@dataclass
class _Options:
    ray: Seeming
    node: str

    def remote(self, *_: object) -> Any:
        return self

    @property
    def turn(self) -> "_Turn":
        return _Turn(self.ray.says[self.node])


@dataclass(frozen=True, eq=False)
class _Promise:
    says: list[object]


@dataclass
class _Turn:
    says: list[object]

    def remote(self, _: object) -> _Promise:
        return _Promise(self.says)


class SeemingCluster(Cluster):
    """Two nodes, the first with two cores."""

    def nodes(self) -> list[Node]:
        return [Node("a", "one (10.0.0.1)", True, 2, 0), Node("b", "two (10.0.0.2)", False, 1, 1)]

    def on(self, node: Node, **needs: float) -> dict[str, Any]:
        return {"node": node.key, **needs}


@pytest.fixture(autouse=True)
def nothing_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "decisive", lambda plan: {})


class NoPlan:
    plan = None


def pool(says: dict[str, list[object]], *, on_devices: bool = False) -> Actors:
    return Actors(SeemingCluster(Seeming(says), "somewhere"), on_devices=on_devices)


def start(found: Actors, number: int) -> Actor:
    made = found.start(number, NoPlan())  # type: ignore[arg-type]
    assert isinstance(made, Actor)
    return made


def test_workers_are_spread_by_cores_and_devices() -> None:
    says: dict[str, list[object]] = {"a": [], "b": []}
    found = pool(says)
    assert found.slots() == 3
    assert sorted(start(found, number).node.key for number in range(3)) == ["a", "a", "b"]
    found = pool(says, on_devices=True)
    assert found.slots() == 1 and start(found, 0).node.key == "b"


@pytest.mark.parametrize(
    "full", [OSError(errno.ENOSPC, "No space left on device", "v.safetensors"), DiskFull("v: needs 2 GB")]
)
def test_a_full_disk_is_named_and_the_work_goes_elsewhere(full: Exception) -> None:
    found = pool({"a": [Failed(full)], "b": [Failed(full)]})
    first = start(found, 1)
    [(link, message)] = found.wait([first])
    assert link is first and message == Gone("found no space on its disk") and "one (10.0.0.1)" in link.name
    second = start(found, 2)
    assert second.node.key == "b"
    list(found.wait([second]))
    with pytest.raises(DiskFull, match=r"^one \(10\.0\.0\.1\): "):
        start(found, 3)


def test_a_fault_that_may_be_of_the_machine_names_it() -> None:
    found = pool({"a": [Failed(InputError("m: no such folder")), Failed(TaskvecError("diverged"))], "b": []})
    [(_, message)] = found.wait([start(found, 1)])
    assert isinstance(message, Failed) and isinstance(message.error, InputError)
    assert str(message.error) == "one (10.0.0.1): m: no such folder"
    [(_, message)] = found.wait([start(found, 2)])
    assert isinstance(message, Failed) and str(message.error) == "diverged"


def test_a_worker_that_dies_is_gone_and_one_that_waits_is_cleared_up() -> None:
    from ray.exceptions import ActorDiedError

    found = pool({"a": [Ready(None), ActorDiedError()], "b": []})
    worker = start(found, 1)
    [(_, message)] = found.wait([worker])
    assert message == Ready(None)
    worker.answer("a job")
    [(_, message)] = found.wait([worker])
    assert isinstance(message, Gone)
    worker.close()


def test_no_room_is_said() -> None:
    class Bare(SeemingCluster):
        def nodes(self) -> list[Node]:
            return [Node("a", "one", True, 0, 0)]

    with pytest.raises(InputError, match="has no core for a worker"):
        Actors(Bare(Seeming({}), "the cluster at x:1"), on_devices=False).slots()
    with pytest.raises(InputError, match="has no CUDA device for a worker"):
        Actors(Bare(Seeming({}), "the cluster at x:1"), on_devices=True).slots()
