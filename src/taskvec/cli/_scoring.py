"""What a search is scored by: options, and the scores that they make."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from taskvec.cli._common import AllowCode, Count, Device, Tasks
from taskvec.code import allowing_code

if TYPE_CHECKING:
    from taskvec.progress import Watch
    from taskvec.searching.objective import Objective, Score

Texts = Annotated[tuple[str, ...], Parameter(negative=())]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What candidates are scored by; flattened into options (``flattened``)."""

    score: Texts = ()
    """A suite by name or file, of which half of each task's validation split is searched on and half held
    out; `lm_eval:TASK,TASK`; or `module:function` or `file.py:function`, which is given the edited weights.
    Any number."""
    score_command: str | None = None
    """A command with `{model}` in it, the folder of the edited model; the last number that it prints is the
    score, or the figures of a JSON object. With `{part}` too (`search`, `holdout`) some data are held out."""
    score_timeout: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    """Seconds that the command may take; a candidate that takes longer counts as the worst."""
    minimise: Annotated[bool, Parameter(negative=())] = False
    """Less of what the command prints, or the function returns, is better."""
    weigh: Texts = ()
    """`FIGURE=WEIGHT` of the sum that is maximized; by default the main figure of each score."""
    keep: Texts = ()
    """A floor: `"accuracy>0.8"`, or in units of the start's, `"perplexity<1.05x"`. What breaks one ranks
    below all that keep it. Any number."""
    task: Tasks = ()
    """Some tasks of the suite; all by default."""
    limit: Count | None = None
    """Only the first so many examples of a task, those that are held out among them."""
    batch_size: Count | None = None
    """Examples a forward pass; 64 by default, 8 for lm-eval."""
    lm_eval_include: str | None = None
    """A folder with task files of your own for lm-eval. They may name code, which runs."""
    lm_eval_fewshot: Annotated[int | None, Parameter(validator=Number(gte=0))] = None
    """Solved examples in front of each question of lm-eval; by default as the task says."""
    model: Annotated[str | None, Parameter(name=["--model", "-m"])] = None
    """What is loaded to be measured, in place of the folder of the recipe's base."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """`bf16` and `fp16` compute matrix products in bfloat16 and float16."""
    device: Device = "auto"
    allow_code: AllowCode = False

    def opened(self, recipe: Path, watch: "Watch") -> "tuple[Score, Objective]":
        """The score, by default the tasks of a file of mergekit-evolve, and what of it is maximized.

        Raises: InputError.
        """
        from taskvec.searching.evolve import read_evolution

        asked = None if self.score or self.score_command else read_evolution(recipe)
        if asked is None or not asked.tasks:
            return self._opened(watch)
        tasks = ",".join(dict.fromkeys(task.name for task in asked.tasks))
        fewshot = asked.num_fewshot if self.lm_eval_fewshot is None else self.lm_eval_fewshot
        limit = self.limit or asked.limit
        given = replace(self, score=(f"lm_eval:{tasks}",), limit=limit, lm_eval_fewshot=fewshot)
        score, objective = given._opened(watch)
        return score, objective if self.weigh else replace(objective, weights=asked.weights(score))

    def _opened(self, watch: "Watch") -> "tuple[Score, Objective]":
        from taskvec.searching.scores import Measuring, open_scores

        measuring = Measuring(
            self.task,
            self.limit,
            self.batch_size,
            self.precision,
            self.model,
            self.device,
            self.minimise,
            self.score_timeout,
            self.lm_eval_include,
            self.lm_eval_fewshot,
            watch,
        )
        with allowing_code(self.allow_code):
            return open_scores(self.score, self.score_command, measuring, weigh=self.weigh, keep=self.keep)
