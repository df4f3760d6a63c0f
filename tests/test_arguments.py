"""Public functions name an argument of the wrong type, rather than fail inside at an attribute it lacks."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Module

import taskvec as tv
from taskvec.arguments import brief, checked, label

NETWORK = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
WRONG = {
    "a module": NETWORK,
    "modules": [NETWORK],
    "a module by name": {"a": NETWORK},
    "a number": 3,
    "a word": "nowhere",
    "nothing": None,
    "an object": object(),
}
FUNCTIONS = [name for name in tv.__all__ if callable(getattr(tv, name))]
VECTORS = [f"TaskVector.{name}" for name in ("between", "from_tensors", "load", "opened", "random_like")]


def called(name: str) -> Callable[..., Any]:
    found: Any = tv
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def filled(function: Callable[..., Any], value: object) -> None:
    """Call a function with the same value for whatever it needs."""
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    places = [value for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    function(*places, **{p.name: value for p in needed if p.kind is p.KEYWORD_ONLY})


@pytest.mark.parametrize("name", [*FUNCTIONS, *VECTORS])
def test_what_a_function_cannot_take_is_told_in_words(name: str) -> None:
    for value in WRONG.values():
        try:
            filled(called(name), value)
        except (TypeError, ValueError) as error:  # also InputError, UnknownName and pydantic's
            assert "in_features" not in str(error)


def test_one_wrong_argument_among_right_ones_is_named(evaluator: tv.Evaluator) -> None:
    backbone, task = evaluator.backbone, evaluator.task("pets")
    part = evaluator.part("pets")
    single: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    vector = tv.TaskVector.from_tensors({}, base=None)
    partial: Any = functools.partial  # what is wrong here is wrong for mypy too
    cases: dict[str, Callable[[], object]] = {
        "fisher: model is Sequential, expected Backbone": partial(tv.fisher, NETWORK, task),
        "fisher: task is 'pets', expected Task": partial(tv.fisher, backbone, "pets"),
        "gram: model is Sequential, expected Backbone": partial(tv.gram, NETWORK, task),
        "finetune: parts is list of Sequential, expected Part | Sequence[Part]": partial(
            tv.finetune, backbone, [NETWORK]
        ),
        "atm: rounds is 'two', expected int": partial(tv.atm, backbone, [part], rounds="two"),
        "Evaluator: tasks is list of str, expected Sequence[Task]": partial(tv.Evaluator, backbone, ["pets"]),
        "Evaluator.points: vectors is dict of Sequential, expected Mapping[str, TaskVector]": partial(
            evaluator.points, {"a": NETWORK}
        ),
        "addition: grid is dict of float, expected Grid | None": partial(
            tv.addition, evaluator, evaluator.points({}), ["pets"], single, {"step": 0.1}
        ),
        "combine: vectors is dict of TaskVector, expected Sequence[TaskVector]": partial(
            tv.combine, "mean", {"a": vector}
        ),
        "similarity: vectors is list of Sequential, TaskVector, expected Sequence[TaskVector]": partial(
            tv.similarity, [vector, NETWORK]
        ),
        "load_backbone: ref is Sequential, expected str | Path": partial(tv.load_backbone, NETWORK),
    }
    for message, call in cases.items():
        with pytest.raises(TypeError) as refused:
            call()
        assert str(refused.value) == message


@checked
def several(
    one: int | None,
    names: Sequence[str] = (),
    by_name: Mapping[str, Tensor] | None = None,
    of: Callable[..., Any] = print,
    space: Literal["a", "b"] = "a",
    models: Sequence["Module"] = (),
    **rest: int,
) -> int:
    """What is annotated in all the ways there are."""
    return one or 0


@pytest.mark.parametrize(
    "given",
    [
        {"one": None},
        {"one": True},
        {"one": 1, "names": {"a", "b"}},
        {"one": 1, "names": (name for name in "ab")},
        {"one": 1, "names": {"a": 1}.keys()},
        {"one": 1, "by_name": {"w": torch.ones(1)}},
        {"one": 1, "by_name": tv.open_weights({"w": torch.ones(1)})},
        {"one": 1, "of": nn.Linear(1, 1), "space": "elsewhere", "models": [nn.Linear(1, 1)], "more": "x"},
    ],
)
def test_what_can_be_used_is_taken(given: dict[str, Any]) -> None:
    assert several(**given) == int(given["one"] or 0)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"one": 1.5}, "one is 1.5, expected int | None"),
        ({"one": 1, "names": "ab"}, "names is 'ab', expected Sequence[str]"),
        ({"one": 1, "names": [1]}, "names is list of int, expected Sequence[str]"),
        ({"one": 1, "names": nn.ModuleList()}, "names is ModuleList, expected Sequence[str]"),
        ({"one": 1, "by_name": [("w", 1)]}, "by_name is list of tuple, expected Mapping[str, Tensor] | None"),
        ({"one": 1, "by_name": {"w": 1}}, "by_name is dict of int, expected Mapping[str, Tensor] | None"),
        ({"one": 1, "of": "print"}, "of is 'print', expected Callable[..., Any]"),
        ({"one": 1, "models": [1]}, "models is list of int, expected Sequence[Module]"),
    ],
)
def test_what_cannot_be_used_is_named(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TypeError, match=r"^several: ") as refused:
        several(**given)
    assert str(refused.value) == f"several: {complaint}"


def test_looking_at_arguments_reads_no_lazy_container() -> None:
    class Unread(Mapping[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            raise AssertionError("read")

        def __iter__(self) -> Any:
            raise AssertionError("read")

        def __len__(self) -> int:
            return 1

    assert several(1, by_name=Unread()) == 1


def test_a_checked_function_keeps_its_face() -> None:
    assert several.__name__ == "several" and several.__doc__
    assert list(inspect.signature(several).parameters)[:2] == ["one", "names"]


def test_objects_in_messages_are_one_short_line() -> None:
    for value in (NETWORK, [NETWORK] * 100, {"a": NETWORK}, "x" * 1000, torch.ones(100)):
        for words in (brief(value), label(value) if not isinstance(value, str) else ""):
            assert "\n" not in words and len(words) <= 80
    assert label("a/b") == "a/b"
    assert label(tv.open_weights(NETWORK)) == "Sequential"
