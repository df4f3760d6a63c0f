from collections.abc import Iterator

import pytest

from taskvec.weights import lazy


@pytest.fixture(autouse=True, scope="package")
def one_digest_at_a_time() -> Iterator[None]:
    """Starting threads takes longer than the digests of these tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy, "THREADS", 1)
        yield
