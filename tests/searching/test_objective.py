"""What candidates are ranked by."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from taskvec.edits.merge import Merge
from taskvec.errors import InputError
from taskvec.searching.objective import WORST, Figures, Keep, Objective, Portion

START = {"accuracy": 0.8, "perplexity": 20.0}


class Measured:
    """A score whose perplexity is better when it falls."""

    parts = True
    key: Mapping[str, object] = {}

    def lower_is_better(self, figure: str) -> bool:
        return figure == "perplexity"

    def evaluate(self, merge: Merge, part: Portion, scratch: Path) -> Figures:
        return START


def test_the_first_figure_counts_unless_others_are_weighed() -> None:
    assert Objective().value(START, Measured()) == 0.8
    assert Objective({"accuracy": 1.0, "perplexity": 0.01}).value(START, Measured()) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("keep", "figures", "kept"),
    [
        (Keep("perplexity", "<", 1.05, relative=True), {"perplexity": 20.9}, 0),
        (Keep("perplexity", "<", 1.05, relative=True), {"perplexity": 23.1}, -0.1),
        (Keep("perplexity", "<", 22.0), {"perplexity": 44.0}, -1),
        (Keep("accuracy", ">", 0.5), {"accuracy": 0.25}, -0.5),
        (Keep("accuracy", ">", 0.0), {"accuracy": -0.5}, -0.5),
    ],
)
def test_a_floor_is_broken_by_a_share_of_its_bound(keep: Keep, figures: Figures, kept: float) -> None:
    worth = Objective(keeps=(keep,)).worth({**START, **figures}, START, Measured())
    assert worth.kept == pytest.approx(kept)


def test_what_breaks_a_floor_ranks_below_all_that_keep_it_by_how_much() -> None:
    objective = Objective(keeps=(Keep("perplexity", "<", 1.0, relative=True),))
    ranked = [
        objective.worth({"accuracy": accuracy, "perplexity": perplexity}, START, Measured())
        for accuracy, perplexity in ((0.1, 20.0), (0.2, 19.0), (0.9, 30.0), (0.95, 40.0))
    ]
    assert sorted(ranked) == [ranked[3], ranked[2], ranked[0], ranked[1]]
    assert min(ranked) > WORST


def test_what_is_not_finite_is_the_worst() -> None:
    assert Objective().worth({"accuracy": math.nan}, START, Measured()) == WORST


@pytest.mark.parametrize(
    "objective", [Objective({"acuracy": 1.0}), Objective(keeps=(Keep("acuracy", ">", 0.5),))]
)
def test_a_figure_that_the_score_does_not_give_is_named(objective: Objective) -> None:
    with pytest.raises(InputError, match=r"no figure 'acuracy'; did you mean 'accuracy'\?"):
        objective.check(START)
