from collections.abc import Iterator

import pytest

from taskvec.rules import quantiles


@pytest.fixture(params=["at once", "by a sample", "by counting"], scope="module")
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """How the entry of a rank is found; few entries would always be looked at at once."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "at once":
            patch.setattr(quantiles, "SMALL", 0)
        if request.param == "by counting":
            patch.setattr(quantiles, "_bracketed", lambda *_: [])
        yield request.param
