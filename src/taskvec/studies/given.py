"""Task vectors that an experiment finds ready, in place of training them."""

from collections.abc import Mapping

import xxhash

from taskvec.errors import InputError
from taskvec.vectors import TaskVector


def load_given(vectors: Mapping[str, str]) -> dict[str, TaskVector]:
    """By task. Raises: InputError naming the key at fault."""
    found = {}
    for task, path in vectors.items():
        try:
            found[task] = TaskVector.load(path)
        except InputError as error:
            raise type(error)(f"vectors.{task}: {error}") from None
    return found


def digest_of(vector: TaskVector) -> str:
    """Of all that it changes, whatever it is stored as; reads every tensor once."""
    digest = xxhash.xxh3_128()
    for name in sorted(vector):
        if vector.terms_at(name):
            digest.update(name.encode())
            digest.update(vector[name].float().contiguous().numpy().tobytes())
    return digest.hexdigest()
