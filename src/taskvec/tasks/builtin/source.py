"""Pictures of the built-in world as a data source of suite files."""

from typing import TYPE_CHECKING, Literal

import xxhash
from pydantic import Field, NonNegativeInt, field_validator

from taskvec.registry import nearest
from taskvec.tasks.source import Rows, Source

if TYPE_CHECKING:
    from taskvec.tasks.builtin.scenes import Pictures

SCENE_NAMES = (
    "handwritten", "display", "streetnum", "letters", "greek", "constellation", "gabor", "pointing",
    "control",
)  # fmt: skip
"""What can be drawn; listed here because listing suites must not import what draws."""


class BuiltinWorld(Source):
    """A scene of the built-in world. Nothing is read: it is drawn when a split is asked for."""

    source: Literal["builtin"] = "builtin"
    scene: str
    only: tuple[NonNegativeInt, ...] | None = Field(default=None, min_length=1)
    """Draw only these of the scene's classes."""
    seed: NonNegativeInt = 0
    """Of what is drawn; the scans of ``handwritten`` do not depend on it."""

    @field_validator("scene")
    @classmethod
    def _known(cls, scene: str) -> str:
        if scene not in SCENE_NAMES:
            raise ValueError(f"no scene called {scene!r}; {nearest(scene, SCENE_NAMES)}")
        return scene

    def rows(self, split: str) -> Rows:
        """The pictures of a split, a uint8 tensor (N, 32, 32, 3)."""
        import torch

        drawn = self._drawn(split)
        return Rows(
            torch.from_numpy(drawn.images),
            drawn.labels.tolist(),
            lambda place: f"built-in scene {self.scene!r}, {split} picture {place}",
        )

    def digest(self) -> str:
        """Of the pixels of the test split: another machine that draws otherwise shows."""
        drawn = self._drawn("test")
        digest = xxhash.xxh3_128(repr((self.scene, self.only, self.seed)).encode())
        digest.update(drawn.images.tobytes())
        digest.update(drawn.labels.tobytes())
        return digest.hexdigest()

    def _drawn(self, split: str) -> "Pictures":
        from taskvec.tasks.builtin.scenes import pictures

        return pictures(self.scene, split, self.seed, self.only)
