"""Documents with one thing wrong in them."""

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from effort import EFFORT
from taskvec.errors import InputError

ODD: list[object] = [
    *(None, True, -1, 0, 7, 0.5, 1e308, float("nan"), 2**63, 10**300),
    *("", "x", "..", "../x", "/etc/passwd", "a\x1b[2Jb", "9" * 5000),
    *([], [1], ["x"], [[]], [0, 2**63], {}, {"x": 1}, {"content": []}),
]


def mutations(content: Any, most: int = 80) -> list[Any]:
    """``content`` with a part of it taken away, or replaced by something odd; ``most`` of all of them."""
    found = list(_every(content))
    return Random(0).sample(found, min(most * EFFORT, len(found)))


def _every(content: Any) -> Iterator[Any]:
    yield from ODD
    for key in range(len(content)) if isinstance(content, list) else list(content):
        rest = content.copy()
        part = rest.pop(key)
        yield rest
        for other in _every(part) if isinstance(part, dict | list) else ODD:
            whole = content.copy()
            whole[key] = other
            yield whole
    if isinstance(content, dict):
        yield {**content, "unheard of": 1, "": [None]}


def texts(content: Any, most: int = 80) -> Iterator[str]:
    """The same as JSON, and JSON that is none."""
    whole = json.dumps(content)
    yield from map(json.dumps, mutations(content, most))
    yield from ("", "{", "[" * 10_000, whole[:-1], whole + whole, '{"a": 1, "a": 2}', "9" * 5000)
    yield whole.replace('"', r'"\ud800', 1)


def refused(call: Callable[[], object]) -> bool:
    """Whether ``call`` says in one line that it was given something wrong; what else it raises is ours."""
    try:
        call()
    except InputError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 2000, str(error)
        return True
    return False


@contextmanager
def little_memory(more: int = 256 << 20) -> Iterator[None]:
    """What asks for much more memory than there is, fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
