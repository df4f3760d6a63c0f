"""What users say of the names of tensors: patterns, renames, which tensors to include and to exclude."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from taskvec.errors import InputError
from taskvec.patterns import Pattern


class NamePattern:
    """A pattern for names of tensors: a part of the name; with ``*``, which stands for any characters, the
    whole name; after ``re:``, a regular expression that whole names match.

    Args:
        text: the pattern.
        where: the option or field that holds it; opens messages.

    Raises: InputError for what is no expression or too large.
    """

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self._whole: Pattern | None = None
        if text.startswith("re:"):
            self._whole = Pattern(text.removeprefix("re:"), where)
        elif "*" in text:
            self._whole = Pattern(_starred(text), where)

    def matches(self, name: str) -> bool:
        """Whether it is a pattern of this name."""
        return self.text in name if self._whole is None else self._whole.fullmatch(name) is not None


class Choice:
    """Which tensors take part: those that a pattern of ``include`` matches, all if there is none, without
    those that one of ``exclude`` matches, or whose names are ``left``."""

    def __init__(
        self, include: Sequence[str] = (), exclude: Sequence[str] = (), left: Collection[str] = ()
    ) -> None:
        self.include = [NamePattern(text, "include") for text in include]
        self.exclude = [NamePattern(text, "exclude") for text in exclude]
        self.left = left

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude or self.left)

    def takes(self, name: str) -> bool:
        """Whether a tensor takes part."""
        included = not self.include or any(pattern.matches(name) for pattern in self.include)
        excluded = name in self.left or any(pattern.matches(name) for pattern in self.exclude)
        return included and not excluded

    def check_used(self, names: Iterable[str]) -> None:
        """Refuse patterns that match none of these names.

        Raises: InputError.
        """
        held = list(names)
        for kind, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(map(pattern.matches, held)):
                    raise InputError(
                        f"{kind}: no tensor's name matches {pattern.text!r}, the last is {_last(held)}; "
                        "correct it or leave it out"
                    )


@dataclass(frozen=True)
class Renames:
    """A map between names: ``OLD`` -> ``NEW``, where each ``*`` stands for any characters, the same in both.

    Without ``*``, what ends in a dot, or is empty, is the beginning of names; all else is a whole name. The
    first that matches a name renames it.
    """

    given: Mapping[str, str]

    def check_used(self, names: Sequence[str], ref: str) -> None:
        """Refuse an old name that matches none of these.

        Args:
            ref: what holds them, for messages.

        Raises: InputError.
        """
        for old, new in self.given.items():
            pattern, _ = _compiled(old, new)
            if not any(pattern.fullmatch(name) for name in _beginning(old, names)):
                raise InputError(
                    f"rename: {ref}: no tensor's name matches {old!r}, the last is {_last(names)}; "
                    "correct it or leave it out"
                )

    def apply(self, names: Sequence[str], ref: str) -> dict[str, str]:
        """The new name of every tensor that gets one.

        Args:
            ref: what holds the tensors, for messages.

        Raises: InputError where two names become one.
        """
        renamed: dict[str, str] = {}
        for old, new in self.given.items():
            pattern, parts = _compiled(old, new)
            for name in _beginning(old, names):
                match = pattern.fullmatch(name)
                if match is not None:
                    stars = [match[number] or "" for number in range(1, len(parts))]
                    made = (star + part for star, part in zip(stars, parts[1:], strict=True))
                    renamed.setdefault(name, parts[0] + "".join(made))
        self._check_distinct(names, renamed, ref)
        return renamed

    def _check_distinct(self, held: Sequence[str], renamed: Mapping[str, str], ref: str) -> None:
        first: dict[str, str] = {}
        for name in held:
            there = renamed.get(name, name)
            if first.setdefault(there, name) != name:
                raise InputError(
                    f"rename: {ref}: {first[there]!r} and {name!r} both become {there!r}, expected one; "
                    "rename them to names of their own"
                )


def parse_renames(pairs: Sequence[str]) -> Renames:
    """``["OLD=NEW", …]`` as a map.

    Raises: InputError for a pair without ``=``, a name given twice, or other stars in old and new.
    """
    given: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not equals:
            raise InputError(f"rename: {pair!r}, expected OLD=NEW, such as 'model.*=language_model.model.*'")
        if old in given:
            raise InputError(f"rename: {old!r} is given twice, expected one new name")
        given[old] = new
    return checked_renames(given)


def checked_renames(given: Mapping[str, str]) -> Renames:
    """A map from old names to new ones.

    Raises: InputError for other stars in old and new, and for names that say nothing.
    """
    for old, new in given.items():
        _compiled(old, new)
    return Renames(dict(given))


def _compiled(old: str, new: str) -> tuple[Pattern, list[str]]:
    """The pattern of the old name, and the parts of the new one between its stars."""
    if "*" not in old + new and all(not text or text.endswith(".") for text in (old, new)) and old != new:
        old, new = f"{old}*", f"{new}*"
    if not old or not new or old.count("*") != new.count("*"):
        raise InputError(
            f"rename: {old!r} to {new!r}, expected a name for each with as many * in both, such as "
            "'model.*=language_model.model.*'"
        )
    return Pattern(_starred(old), "rename"), new.split("*")


def _beginning(old: str, names: Sequence[str]) -> list[str]:
    """The names that begin as a pattern does."""
    start = old.partition("*")[0]
    return [name for name in names if name.startswith(start)]


def _last(names: Sequence[str]) -> str:
    return repr(names[-1]) if names else "none"


def _starred(text: str) -> str:
    return "(.*)".join(map(re.escape, text.split("*")))
