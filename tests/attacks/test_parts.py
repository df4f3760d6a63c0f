"""Parts of a model whose processes are killed; the large form is ``python -m attacks.parts``."""

from pathlib import Path

from attacks.parts import survive
from effort import EFFORT


def test_a_model_in_parts_survives_kills(tmp_path: Path) -> None:
    survive(tmp_path, nbytes=2_000_000, parts=3, workers=2, kills=min(50, 2 * EFFORT))
