"""What a search is scored by: options, and the score that they make."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from taskvec.cli._common import AllowCode, Count, Device, Tasks
from taskvec.place import Precision

if TYPE_CHECKING:
    from taskvec.searching.objective import Objective, Score


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What candidates are scored by; flattened into options (``flattened``)."""

    score: Annotated[tuple[str, ...], Parameter(name=["--score"], negative=())] = ()
    """A suite by name or file, measured on its validation split, of which half is held out;
    `lm_eval:TASK,TASK` of lm-evaluation-harness; or `module:function` or `file.py:function` of your own,
    which is given the edited `weights`, or the loaded `model`, by the names of its parameters. Several are
    summed."""
    score_command: str | None = None
    """A command that prints a number, or a JSON object of figures, last: `"./score.sh {model}"`. The shell
    runs it as it is; `{model}` stands for the folder of the edited model, `{part}` for `search` or
    `holdout`."""
    score_timeout: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    """Seconds that the command may take; longer counts as a failure."""
    minimise: Annotated[bool, Parameter(negative=())] = False
    """Less of the number that the command or the function gives is better."""
    weigh: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    """`FIGURE=WEIGHT`, any number: what is maximized is the weighted sum of figures; those of which less is
    better, such as perplexity, count as negative. By default the main figure of each score."""
    keep: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    """A floor, any number: `"accuracy>0.8"`, or in units of the start's `"perplexity<1.05x"`. A candidate
    that breaks one ranks below all that keep it."""
    task: Tasks = ()
    """Some tasks of the suite; all by default."""
    limit: Count | None = None
    """Only the first so many examples of a task, those held out among them."""
    batch_size: Count | None = None
    """Examples a forward pass; 64 by default, 8 for lm-eval."""
    lm_eval_include: str | None = None
    """A folder with task files of your own for `lm_eval:`. They may name code, which runs."""
    lm_eval_fewshot: Annotated[int | None, Parameter(validator=Number(gte=0))] = None
    """Solved examples in front of each question; by default as the task says."""
    model: Annotated[str | None, Parameter(name=["--model", "-m"])] = None
    """What is loaded to be measured, where the folder of the recipe's base is no model that can be run: a
    folder, or `file.py:function`, which gives a model of your own."""
    precision: Precision = "float32"
    """`bf16` and `fp16` compute matrix products in bfloat16 and float16."""
    device: Device = "auto"
    allow_code: AllowCode = False

    def opened(self, recipe: Path) -> "tuple[Score, Objective]":
        """The score, by default the tasks of a file of mergekit-evolve, and what of it is maximized.

        Raises: InputError.
        """
        from taskvec.searching.evolve import read_evolution

        asked = None if self.score or self.score_command else read_evolution(recipe)
        if asked is None or not asked.tasks:
            return self._opened()
        tasks = ",".join(dict.fromkeys(task.name for task in asked.tasks))
        fewshot = asked.num_fewshot if self.lm_eval_fewshot is None else self.lm_eval_fewshot
        limit = self.limit or asked.limit
        given = replace(self, score=(f"lm_eval:{tasks}",), limit=limit, lm_eval_fewshot=fewshot)
        score, objective = given._opened()
        return score, objective if self.weigh else replace(objective, weights=asked.weights(score))

    def score_of(self, recipe: Path) -> "Score":
        """The score alone, as ``opened`` makes it."""
        return self.opened(recipe)[0]

    def _opened(self) -> "tuple[Score, Objective]":
        """The score and what of it is maximized. Raises: InputError; MissingExtra."""
        from taskvec.code import allowing_code
        from taskvec.searching.scores import Measuring, open_scores

        measuring = Measuring(
            tasks=self.task,
            limit=self.limit,
            batch_size=self.batch_size,
            precision=self.precision,
            model=self.model,
            device=self.device,
            minimise=self.minimise,
            timeout=self.score_timeout,
            include=self.lm_eval_include,
            fewshot=self.lm_eval_fewshot,
        )
        with allowing_code(self.allow_code):
            return open_scores(self.score, self.score_command, measuring, weigh=self.weigh, keep=self.keep)
