"""One spoiled input after another, and what becomes of it: a refusal, a right result, or a finding.

Case number 17 of the family "recipes" is the same for everyone. To see it again, with its files kept::

    PYTHONPATH=tests python -m attacks.cases recipes 17

and the table of a long run (``make attack``), with the findings by cause::

    PYTHONPATH=tests python -m attacks.cases runs/attack
"""

import json
import os
import re
import shlex
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from tempfile import mkdtemp

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from attacks.editing import APPLY, SECRET
from attacks.families import FAMILIES
from attacks.mutations import scrambled
from forking import Forks

SECONDS = 5.0
"""How much longer a spoiled input may take than the sound one."""

MEMORY = 500_000_000
"""Bytes that a process may take beyond what it starts with; inputs here have a few thousand."""

RIGHT, REFUSED = "right", "refused"
_STRANGE = re.compile(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]")
_PLACE = re.compile(r'File "[^"]*/(taskvec/[^"]*)", line (\d+),? in (\w+)')


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        verdict: "right", "refused", or what is wrong.
        cause: of a finding, where it comes from.
        said: by the command, on standard error.
    """

    family: str
    number: int
    verdict: str
    command: str = ""
    cause: str = ""
    said: str = ""

    @property
    def finding(self) -> bool:
        return self.verdict not in (RIGHT, REFUSED)

    def __str__(self) -> str:
        said = " ".join(self.said.split()).encode("ascii", "backslashreplace").decode()
        shown = f"{self.family} {self.number}: {self.verdict}: {self.cause}: {self.command}: {said[:200]}"
        return _STRANGE.sub(lambda found: ascii(found[0])[1:-1], shown)


class Arena:
    """A place where cases are tried, with the files of each family at hand."""

    def __init__(self, folder: Path, forks: Forks) -> None:
        self.place = folder / "all" / "of" / "case"
        self._templates, self._forks = folder / "families", forks
        self._seconds: dict[str, float] = {}

    def _prepare(self, name: str) -> None:
        """Make the sound files of a family, and run each of its commands on them."""
        family, template = FAMILIES[name], self._templates / name
        if name not in self._seconds:
            # Made where the cases will be, since some files name others by their whole path.
            self._clear()
            family.build(self.place)
            template.parent.mkdir(exist_ok=True)
            shutil.copytree(self.place, template, symlinks=True)
            self._seconds[name] = max(self._sound(name, command) for command in family.commands)

    def _sound(self, name: str, command: str) -> float:
        for learn in (True, False):
            self._restore(name)
            self._forks(shlex.split(command), place=self.place, learn=learn)
            if self._forks.ended.seconds < 1:
                break
        return self._forks.ended.seconds

    def _clear(self) -> None:
        shutil.rmtree(self.place.parent, ignore_errors=True)
        self.place.mkdir(parents=True)

    def _restore(self, name: str) -> None:
        self._clear()
        shutil.copytree(self._templates / name, self.place, symlinks=True, dirs_exist_ok=True)

    def tried(self, name: str, number: int) -> Outcome:
        """The outcome of a case; a finding is tried again for its cause."""
        self._prepare(name)
        words = self._spoiled(name, number)
        command = shlex.join(words).encode(errors="backslashreplace").decode()
        verdict = self._verdict(name, words)
        if verdict in (RIGHT, REFUSED):
            return Outcome(name, number, verdict, command)
        said = self._forks.errors.strip()[-2000:]
        return Outcome(name, number, verdict, command, self._cause(name, number, verdict, said), said)

    def _spoiled(self, name: str, number: int) -> list[str]:
        """Make the files of a case; the words of its command."""
        family, draw = FAMILIES[name], Random(f"{name} {number}")
        self._restore(name)
        command, text = draw.choice(family.commands), None
        files = sorted(
            file for pattern in family.files for file in self.place.glob(pattern) if file.is_file()
        )
        if files and draw.random() < 0.2:
            file = draw.choice(files)
            file.write_bytes(scrambled(draw, file.read_bytes(), draw.choice(files).read_bytes()))
            text = file.name
        else:
            text = family.spoil(draw, self.place)
        return [word.replace("@", text or "") for word in shlex.split(command)]

    def _verdict(self, name: str, words: Sequence[str]) -> str:
        bounds = {"limit_memory": MEMORY, "limit_files": 200_000_000}
        limit = SECONDS + self._seconds[name]
        code = self._forks(words, bounds, place=self.place, seconds=limit)
        ended, out, errors = self._forks.ended, self._forks.out, self._forks.errors
        lines = [line for line in errors.splitlines() if not line.startswith("note: ")]
        if ended.late:
            return f"takes more than {limit:.0f} s"
        if "Traceback" in errors or "internal error" in errors:
            return "internal error"
        if re.search(r"allocate|MemoryError|bad_alloc", errors):
            return "memory"
        if strange := _STRANGE.search(out + errors):
            return f"control character {strange[0]!r}"
        if code not in (0, 1, 2):
            return f"exit code {code}"
        if (self.place / "RAN").exists():
            return "code of a file was run"
        if code == 0:
            return f"{len(lines)} lines on standard error" if lines else self._result(words) or RIGHT
        if len(lines) != 1 or not lines[0].startswith("taskvec: "):
            return f"{len(lines)} lines on standard error"
        return REFUSED

    def _result(self, words: Sequence[str]) -> str:
        """What is wrong with an output, if anything."""
        if "-o" not in words or words[0] == "run":  # a run goes on in a folder of spoiled files
            return ""
        out = self.place / words[words.index("-o") + 1]
        try:
            files = sorted(file for file in (out.rglob("*") if out.is_dir() else [out]) if file.is_file())
            if any(SECRET in file.read_bytes() for file in files):
                return "a file from outside is in the output"
            weights = [file for file in files if file.suffix == ".safetensors"]
            found = {name: value for file in weights for name, value in load(file.read_bytes()).items()}
        except (OSError, SafetensorError) as error:
            return f"an output that does not open ({error})"
        if not all(bool(value.isfinite().all()) for value in found.values()):
            return "an output that is not finite"
        return self._sum(found) if shlex.join(words) == APPLY else ""

    def _sum(self, found: dict[str, torch.Tensor]) -> str:
        """Compare with base and vector, read and added by others."""
        try:
            base = load((self.place / "base" / "model.safetensors").read_bytes())
            delta = load((self.place / "a.safetensors").read_bytes())
        except (OSError, SafetensorError):
            return ""  # not in these files, or not so that safetensors can read it
        for name, start in base.items():
            wanted = (
                start.double() + delta.get(name, torch.zeros(())).double()
                if start.is_floating_point()
                else start
            )
            if name not in found or not torch.allclose(
                found[name].double(), wanted.double(), rtol=1e-2, atol=1e-5
            ):
                return f"{name} is not what base and vector make"
        return ""

    def _cause(self, name: str, number: int, verdict: str, said: str) -> str:
        """The last place of ours in the traceback, or what was said."""
        if verdict.startswith("control"):
            return "a name is printed as it is"
        if not verdict.startswith(("internal", "memory", "takes")):
            return re.sub(r"\d+", "N", re.sub(r"'[^']*'|\"[^\"]*\"|/\S+", "…", said))[:80]
        words = self._spoiled(name, number)
        looking = {"limit_memory": MEMORY, "environment": {"TASKVEC_DEBUG": "1"}, "say_where": SECONDS}
        self._forks(words, looking, place=self.place, seconds=SECONDS + 1)
        newest_last = "(most recent call last)" in self._forks.errors
        found = _PLACE.findall(self._forks.errors) or [("somewhere", "", "")]
        kinds = re.findall(r"^(\w[\w.]*)(?:: |$)", self._forks.errors, re.MULTILINE)
        file, line, function = found[-1] if newest_last else found[0]
        return f"{kinds[-1] if kinds and newest_last else verdict} at {file}:{line} ({function})"


def recorded(outcomes: Sequence[Outcome]) -> None:
    """Add outcomes to the file of a long run, if this is one."""
    folder = os.environ.get("TASKVEC_ATTACK")
    if not folder:
        return
    totals = Counter((one.family, one.verdict if not one.finding else "findings") for one in outcomes)
    lines = [
        json.dumps({"family": family, "what": what, "count": count})
        for (family, what), count in totals.items()
    ]
    lines += [json.dumps({"finding": asdict(one)}) for one in outcomes if one.finding]
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / "outcomes.jsonl").open("a") as file:
        file.write("".join(line + "\n" for line in lines))


def table(folder: Path) -> str:
    """Totals by family, and findings by cause."""
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    causes: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for line in (folder / "outcomes.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "finding" in entry:
            found = Outcome(**entry["finding"])
            causes[found.verdict, found.cause].append(found)
        else:
            totals[entry["family"]][entry["what"]] += entry["count"]
            totals["all"][entry["what"]] += entry["count"]
    columns = (REFUSED, RIGHT, "findings")
    lines = [f"{'family':24}{'all':>9}" + "".join(f"{column:>9}" for column in columns)]
    for family, counts in sorted(totals.items(), key=lambda item: (item[0] == "all", item[0])):
        lines.append(f"{family:24}{counts.total():9}" + "".join(f"{counts[column]:9}" for column in columns))
    for found_here in sorted(causes.values(), key=len, reverse=True):
        lines.append(f"{len(found_here):5} x {min(found_here, key=lambda one: len(one.command))}")
    return "\n".join(lines)


def replay(family: str, number: int) -> Outcome:
    """Try one case, and say what came of it and where its files are."""
    folder = Path(mkdtemp(prefix="taskvec-attack-"))
    forks = Forks(folder)
    arena = Arena(folder, forks)
    begun = time.monotonic()
    outcome = arena.tried(family, number)
    arena._spoiled(family, number)
    sys.stdout.write(f"{outcome}\n{time.monotonic() - begun:.1f} s; files: {arena.place}\n")
    forks.close()
    return outcome


if __name__ == "__main__":
    if len(sys.argv) == 3:
        sys.exit(int(replay(sys.argv[1], int(sys.argv[2])).finding))
    sys.stdout.write(table(Path(sys.argv[1])) + "\n")
