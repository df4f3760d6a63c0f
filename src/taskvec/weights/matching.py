"""How the names of two checkpoints of one model correspond, by comparing names and shapes as sets.

Wrappers, trainers and bare encoders put words in front of all names, or into their middle. Which words is
not looked up in a table of architectures: the change of names that makes most tensors fit is taken.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import NamedTuple

from taskvec.weights.blocks import TensorSpec

Words = tuple[str, ...]
Specs = Mapping[str, TensorSpec]

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}) | {
    "_forward_module",
    "_fpw_module",
}
"""Words that wrappers of modules put anywhere into names."""

_OLDER: dict[Words, Words] = {("gamma",): ("weight",), ("beta",): ("bias",)} | {
    ("weight_g",): ("parametrizations", "weight", "original0"),
    ("weight_v",): ("parametrizations", "weight", "original1"),
}
"""Last words of names in old checkpoints, and in new ones."""

_ANY = frozenset({"model", "net", "network", "backbone", "encoder", "transformer", "base_model"}) | {
    *("student", "teacher", "policy", "auto_model", "language_model", "text_model", "pretrained_model"),
    *("inner", "inner_model", "wrapped", "llm", "lm", "actor", "ema_model", "hf_model", "base"),
}
"""Words that a model goes by inside another, in whose place any other may stand."""

_SHARE = 3
"""A change of most names must fit one in so many tensors of one of the models."""

_ROUNDS = 16
_TRIED = 16
_LONGEST = 32
"""Words of the longest end of a name that is looked at."""

_COMMON = 256
"""Names with the same end of which more say nothing about where it belongs."""


class Change(NamedTuple):
    """Words in front of names, and what stands there in the other model."""

    old: Words
    new: Words

    def apply(self, words: Words) -> Words | None:
        """The words of a name after the change; ``None`` for a name that it is not about."""
        size = len(self.old)
        return self.new + words[size:] if words[:size] == self.old else None

    def __str__(self) -> str:
        """For messages.

        >>> str(Change(("module",), ()))
        "'module.' -> ''"
        """
        return " -> ".join(map(repr, self._texts()))

    def option(self) -> str:
        """As the user says it.

        >>> Change(("module",), ()).option()
        'module.='
        """
        return "=".join(self._texts())

    def _texts(self) -> list[str]:
        return ["".join(f"{word}." for word in words) for words in self]


_SAME = Change((), ())


class Match(NamedTuple):
    """What corresponds.

    Attributes:
        names: name in the other model -> name in the base, where that is another.
        lost: those that are not found -> the name they would have.
        rivals: two changes that fit equally well, where none was made because of that.
    """

    names: Mapping[str, str]
    lost: Mapping[str, str] = {}
    rivals: tuple[Change, Change] | None = None


def match_names(base: Specs, other: Specs) -> Match:
    """The names of the base for the tensors of another model, where these are other names.

    Names that the base has stay as they are, unless a change of all names fits more tensors. Tensors for
    which no name is found are left out. No two get the same name.

    >>> spec = TensorSpec((2,), torch.float32)
    >>> match_names({"w": spec}, {"module.w": spec}).names
    {'module.w': 'w'}
    """
    if all(name in base for name in other):
        return Match({})
    search = _Search(base, other)
    rivals = search.run()
    names = {name: there for name, there in search.found.items() if name != there}
    lost = {name: ".".join(search.main.apply(words) or words) for name, words in search.left.items()}
    return Match(names, lost, rivals)


class _Search:
    """A search for changes of names, the best first."""

    def __init__(self, base: Specs, other: Specs) -> None:
        self.base, self.other = base, other
        self.free = {words: name for name, words in _plain(base).items()}
        self.left = _plain(other)
        self.found: dict[str, str] = {}
        self.main, self.words = _SAME, {"model"}

    def run(self) -> tuple[Change, Change] | None:
        """Find what corresponds.

        Returns: two changes of most names that fit equally well, if there are.
        """
        least = min(len(self.free), len(self.left)) / _SHARE
        fitting = {change: self._fitting(change) for change in (_SAME, *self._candidates(_is_main))}
        best = max(fitting, key=lambda change: (len(fitting[change]), change == _SAME))
        if best != _SAME and len(fitting[best]) >= least:
            rival = _rival(best, fitting)
            if rival is not None:
                return best, rival
            self.main = best
        self._make(self.main)
        for _ in range(_ROUNDS):
            if not (self.free and self.left and self._follow()):
                break
        return None

    def _follow(self) -> bool:
        """Make one of the smaller changes that come with the main one, if any fits."""
        if self._make(_SAME):
            return True
        fitting = {change: self._fitting(change) for change in self._candidates(self._is_minor)}
        best = max(fitting, key=lambda change: len(fitting[change]), default=_SAME)
        return best != _SAME and _rival(best, fitting) is None and self._make(best)

    def _make(self, change: Change) -> bool:
        pairs = self._pairs(change)
        self.words |= {*change.old, *change.new} if pairs else set()
        for name, there in pairs.items():
            self.found[name] = self.free.pop(there)
            del self.left[name]
        return bool(pairs)

    def _pairs(self, change: Change) -> dict[str, Words]:
        """What a change finds a name for, of any shape."""
        changed = ((name, change.apply(words)) for name, words in self.left.items())
        return {name: there for name, there in changed if there is not None and there in self.free}

    def _fitting(self, change: Change) -> dict[str, Words]:
        """What a change finds a tensor of the same shape for."""
        pairs = self._pairs(change)
        return {name: there for name, there in pairs.items() if self._same_shape(name, there)}

    def _same_shape(self, name: str, there: Words) -> bool:
        return self.other[name].shape == self.base[self.free[there]].shape

    def _candidates(self, may_be: Callable[[Change], bool]) -> list[Change]:
        """Changes that find a place for some tensor, those for most tensors first."""
        ends: dict[Words, list[Words]] = {}
        for words in self.free:
            for place in _places(words):
                ends.setdefault(words[place:], []).append(words)
        votes = Counter(change for name in self.left for change in self._votes(name, ends))
        return list(islice((change for change, _ in votes.most_common() if may_be(change)), _TRIED))

    def _votes(self, name: str, ends: Mapping[Words, Sequence[Words]]) -> Iterator[Change]:
        """The changes that give a tensor the longest end in common with one of its shape."""
        words = self.left[name]
        for place in _places(words):
            end = words[place:]
            held = ends.get(end, ())
            if len(held) > _COMMON:
                return
            there = [found for found in held if self._same_shape(name, found)]
            if len(end) == 1:  # the last word alone tells nothing, unless it is all there is
                there = [found for found in there if place == 0 or found == end]
            if there:
                yield from (Change(words[:place], found[: len(found) - len(end)]) for found in there)
                return

    def _is_minor(self, change: Change) -> bool:
        """Whether a change may come with those that were made: one of the same words, or of ``model``."""
        added, taken = _difference(change)
        return _is_main(change) and not (added and taken) and {*added, *taken} <= self.words


def _places(words: Words) -> range:
    """Where the ends of a name begin, the longest first."""
    return range(max(0, len(words) - _LONGEST), len(words))


def _is_main(change: Change) -> bool:
    """Whether wrappers make such a change: words added, taken away or moved in front of all blocks, or others
    put in the place of words that stand for any model."""
    added, taken = _difference(change)
    before = takewhile(lambda pair: pair[0] == pair[1], zip(*change, strict=False))
    numbered = any(word.isdecimal() for word in (*added, *taken)) and change.old and change.new
    if numbered or any(word.isdecimal() for word, _ in before):
        return False
    return not (added and taken) or set(added) <= _ANY or set(taken) <= _ANY


def _difference(change: Change) -> tuple[Sequence[str], Sequence[str]]:
    """The words that a change adds, and those that it takes away."""
    old, new = map(Counter, change)
    return list(new - old), list(old - new)


def _rival(best: Change, fitting: Mapping[Change, Mapping[str, Words]]) -> Change | None:
    """Another change that fits as many tensors, and puts one of them elsewhere, or another in its place."""
    places = {there: name for name, there in fitting[best].items()}
    for change, pairs in fitting.items():
        apart = any(
            fitting[best].get(name, there) != there or places.get(there, name) != name
            for name, there in pairs.items()
        )
        if len(pairs) == len(fitting[best]) and (apart or change == _SAME != best):
            return change
    return None


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Every name without the words of wrappers, where it has some, and as it is called today.

    >>> plain_names(["w", "module.norm.gamma"])
    {'module.norm.gamma': 'norm.weight'}
    """
    plain = {name: ".".join(words) for name, words in _plain(names).items()}
    return {name: there for name, there in plain.items() if there != name}


def _plain(names: Iterable[str]) -> dict[str, Words]:
    """The words of every name without those of wrappers, and with the last ones as they are called today.

    Names that would be the same then keep all their words.
    """
    plain = {name: _unwrapped(tuple(name.split("."))) for name in names}
    count = Counter(plain.values())
    return {name: words if count[words] == 1 else tuple(name.split(".")) for name, words in plain.items()}


def _unwrapped(words: Words) -> Words:
    """
    >>> _unwrapped(("_orig_mod", "norm", "gamma"))
    ('norm', 'weight')
    """
    kept = tuple(word for word in words[:-1] if word not in WRAPPERS)
    return (*kept, *_OLDER.get(words[-1:], words[-1:]))
