"""Documents with one thing wrong in them."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from taskvec.errors import InputError

ODD: list[object] = [
    *(None, True, -1, 0, 7, 0.5, 1e308, float("nan"), 2**63, 10**300),
    *("", "x", "..", "../x", "/etc/passwd", "a\x1b[2Jb", "9" * 5000),
    *([], [1], ["x"], [[]], [0, 2**63], {}, {"x": 1}, {"content": []}),
]


def mutations(content: Any) -> Iterator[Any]:
    """``content`` with each part of it, whole or within, taken away or replaced by each odd value."""
    yield from ODD
    for key in range(len(content)) if isinstance(content, list) else list(content):
        rest = content.copy()
        part = rest.pop(key)
        yield rest
        changed = mutations(part) if isinstance(part, dict | list) else ODD
        for other in changed:
            whole = content.copy()
            whole[key] = other
            yield whole
    if isinstance(content, dict):
        yield {**content, "unheard of": 1, "": [None]}


def texts(content: Any) -> Iterator[str]:
    """The same as JSON, and JSON that is none."""
    whole = json.dumps(content)
    yield from map(json.dumps, mutations(content))
    yield from ("", "{", "[" * 10_000, whole[:-1], whole + whole, '{"a": 1, "a": 2}', "9" * 5000)
    yield whole.replace('"', r'"\ud800', 1)


def refused(call: Callable[[], object]) -> bool:
    """Whether ``call`` says in one line that it was given something wrong; anything else it raises is ours."""
    with suppress(InputError):
        call()
        return False
    try:
        call()
    except InputError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 2000, str(error)
    return True
