"""Parts of one piece of work, each a command, on the nodes of a cluster."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskvec.errors import InputError, TaskvecError
from taskvec.processes import AGAIN
from taskvec.runs.executors import host
from taskvec.runs.executors.cluster import Cluster, connected, settings_of


def write_parts(address: str, command: Sequence[str], output: Path) -> dict[str, Any]:
    """Run a command of taskvec for every part of an output, as many parts as a cluster has cores.

    Args:
        address: see :func:`taskvec.runs.executors.cluster.connected`.
        command: that takes ``--part``, with absolute paths.
        output: that the parts write together; its folder has to be seen by every node.

    Returns: what the part said that completed it.

    Raises: MissingExtra; InputError; TaskvecError for a part that failed. What is written by others stays.
    """
    with connected(address) as cluster:
        cluster.check(output.parent, None)
        count = sum(node.cores for node in cluster.nodes())
        if not count:
            raise InputError(f"Ray, {cluster.where}: has no core for a part; add a node that has one")
        said = _done(cluster, [[*command, f"--part={number}/{count}"] for number in range(1, count + 1)])
    return next(each for each in said if each["complete"])


def _done(cluster: Cluster, commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """What commands said, all of which succeeded; one whose node or process was lost runs again."""
    from ray.exceptions import RayError

    run = cluster.ray.remote(host.run_command).options(
        num_cpus=1, max_retries=0, scheduling_strategy="SPREAD"
    )
    settings = settings_of()
    again, said = Counter[int](), dict[int, dict[str, Any]]()
    waiting = {run.remote(list(command), *settings): place for place, command in enumerate(commands)}
    while waiting:
        [ready], _ = cluster.ray.wait(list(waiting), num_returns=1)
        place = waiting.pop(ready)
        try:
            node, code, text, complaint = cluster.ray.get(ready)
        except RayError as error:
            node, code, text, complaint = "", -1, "", type(error).__name__
        if code == 0:
            said[place] = json.loads(text)
        elif code > 0:
            kind = InputError if code == 2 else TaskvecError
            raise kind(f"part {place + 1} of {len(commands)}, on {node}: {complaint}")
        else:
            again[place] += 1
            if again[place] > AGAIN:
                raise TaskvecError(
                    f"part {place + 1} of {len(commands)}: was ended {AGAIN + 1} times ({complaint}); what "
                    "other parts wrote stays: run it again to go on"
                )
            waiting[run.remote(list(commands[place]), *settings)] = place
    return [said[place] for place in range(len(commands))]
