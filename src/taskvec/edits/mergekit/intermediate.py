"""A merge as a model of another one: computed when read, never written."""

import shutil
import weakref
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from taskvec.edits.merge import Merge
from taskvec.reading import copy_regular
from taskvec.weights import Weights
from taskvec.weights.beside import files_beside

if TYPE_CHECKING:
    from torch import Tensor


class Intermediate(Weights):
    """The weights of a merge, in a folder with the config and tokenizer files that go with them.

    The folder is temporary, and goes with this object.
    """

    def __init__(self, name: str, merge: Merge) -> None:
        folder = Path(mkdtemp(prefix="taskvec-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.merge = merge
        weights = merge.weights
        super().__init__(
            name,
            {tensor: weights.spec(tensor) for tensor in weights},
            ("intermediate", weights.identity),
            parts=[weights],
            tied=weights.tied,
            folder=_stage(merge, folder),
        )

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        return self.merge.weights.read(name, rows)

    def own_bytes(self, name: str) -> int:
        """None: what was read is passed on."""
        return 0


def _stage(merge: Merge, folder: Path) -> Path:
    """Copies of the side files of a merge, and those that it makes itself."""
    for file, place in files_beside(merge.like.folder).copied:
        if str(place) not in merge.files:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            copy_regular(file, folder / place)
    for name, text in merge.files.items():
        if text != "":
            (folder / name).write_text(text, encoding="utf-8")
    return folder
