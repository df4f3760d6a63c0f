"""Scores of lm-evaluation-harness, of an edited language model in memory."""

import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import InputError, TaskvecError, UnknownName, and_more, optional
from taskvec.models.backbone import Backbone
from taskvec.models.language import LanguageModel
from taskvec.place import Precision, autocast
from taskvec.reading import is_folder, shortened
from taskvec.registry import nearest
from taskvec.substitution import substituted
from taskvec.training.loop import Params

_RESAMPLED = 1000
"""Bootstrap samples for the standard error of a metric that is no mean; that of a mean is a formula."""


class HarnessSettings(Config, use_attribute_docstrings=True):
    """What lm-evaluation-harness is asked for."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks, groups or patterns of them, such as ``arc_easy``."""
    limit: PositiveInt | None = None
    """Only the first so many examples of a task."""
    include: str | None = None
    """A folder with task files of one's own, beside those of the harness."""
    fewshot: int | None = Field(default=None, ge=0)
    """Solved examples in front of each; by default as the task says."""
    batch: PositiveInt = 8
    """Examples a forward pass."""
    seed: int = Field(default=1234, ge=0, lt=2**32)
    """Of the examples in front, and of whatever a task draws."""


@dataclass(frozen=True)
class Figure:
    """A metric of a task: its value, and the standard error where the harness knows one."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class HarnessScore:
    """The metrics of a task or a group, by name."""

    metrics: dict[str, Figure]
    examples: int | None
    """None for a group."""

    def record(self) -> dict[str, object]:
        """The figures as plain data."""
        return asdict(self)


def harness_package() -> Any:
    """The harness. Raises: MissingExtra."""
    missing = "lm-eval is not installed, needed for its tasks; pip install 'taskvec[lm-eval]'"
    return optional("lm_eval", missing)


@checked
def harness(
    backbone: Backbone,
    settings: HarnessSettings,
    point: Params | None = None,
    *,
    precision: Precision = "float32",
    show: bool = False,
    manager: Any = None,
    samples: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, HarnessScore]:
    """Run tasks of lm-evaluation-harness on a language model at other values of its parameters.

    Nothing is written; the model has its own values again afterwards.

    Args:
        point: values by checkpoint name, as ``Evaluator.points(…).at(…)`` gives them; by default its own.
        show: let the harness show its progress on standard error.
        manager: of what ``find_tasks`` gave, to find them once for several models.
        samples: which examples of each task count, by their places, in place of ``settings.limit``.

    Raises: MissingExtra; InputError for a model or a task that cannot be had; TaskvecError if the harness
        changes the weights, or fails.
    """
    package = harness_package()
    if not isinstance(backbone, LanguageModel) or not hasattr(backbone.network, "tie_weights"):
        raise InputError(f"{backbone.ref}: lm-eval runs language models of transformers; this is none")
    with _apart(show), _moved(backbone, point or {}):
        manager = manager or _manager(settings)
        before = _digests(backbone.network)
        with _failing(settings):
            model = _as_harness_model(backbone, settings.batch)
            _check_same(backbone, before)
            with autocast(precision, backbone.device), _without_environment():
                results = package.simple_evaluate(
                    model=model,
                    tasks=list(settings.tasks),
                    task_manager=manager,
                    num_fewshot=settings.fewshot,
                    limit=settings.limit if samples is None else None,
                    **({} if samples is None else {"samples": samples}),
                    log_samples=False,
                    bootstrap_iters=_RESAMPLED,
                    random_seed=settings.seed,
                    numpy_random_seed=settings.seed,
                    torch_random_seed=settings.seed,
                    fewshot_random_seed=settings.seed,
                )
        _check_same(backbone, before)
    return _scores(results)


class HarnessTasks(NamedTuple):
    """Tasks of the harness: its index of them; how many examples each has; whether more of its metrics is
    better."""

    manager: Any
    counts: Mapping[str, int]
    higher: Mapping[str, Mapping[str, bool]]


def find_tasks(settings: HarnessSettings, *, show: bool = False) -> HarnessTasks:
    """What the harness knows of the tasks asked for, the members of groups one by one.

    Raises: MissingExtra; InputError for a folder that is not there; UnknownName; TaskvecError for data that
        cannot be had.
    """
    harness_package()
    with _apart(show):
        manager = _manager(settings)
        with _failing(settings):
            tasks: Mapping[str, Any] = manager.load(list(settings.tasks))["tasks"]
            counts = {name: len(task.eval_docs) for name, task in tasks.items()}
            higher = {name: dict(task.higher_is_better()) for name, task in tasks.items()}
    return HarnessTasks(manager, counts, higher)


@contextmanager
def _failing(settings: HarnessSettings) -> Iterator[None]:
    """One line for whatever the harness raises. Raises: TaskvecError."""
    try:
        yield
    except TaskvecError:
        raise
    except Exception as error:  # of data that cannot be had, of a task's own code
        message = shortened(" ".join(str(error).split()))
        raise TaskvecError(
            f"lm-eval: {', '.join(settings.tasks)}: {type(error).__name__}: {message}"
        ) from error


def _manager(settings: HarnessSettings) -> Any:
    """The harness's index of tasks. Its own 14,000 take seconds to read, so those in a folder come first.

    Raises: InputError for a folder that is not there; UnknownName.
    """
    kind = optional("lm_eval.tasks", "lm-eval is not installed").TaskManager
    manager = None
    if settings.include is not None:
        if not is_folder(settings.include):
            raise InputError(f"{settings.include}: no such folder, expected one with task files of lm-eval")
        manager = kind(include_path=settings.include, include_defaults=False)
    if manager is None or not all(map(manager.match_tasks, ([name] for name in settings.tasks))):
        manager = kind(include_path=settings.include)
    for name in settings.tasks:
        if not manager.match_tasks([name]):
            raise UnknownName(f"lm-eval: no task called {name!r}; {nearest(name, manager.all_tasks)}")
    return manager


def _as_harness_model(backbone: LanguageModel, batch: int) -> Any:
    models = optional(
        "lm_eval.models.huggingface", "lm-eval cannot load its models; pip install 'taskvec[lm-eval]'"
    )
    return models.HFLM(
        pretrained=backbone.network,
        tokenizer=deepcopy(backbone.tokenizer),  # it gives it a token for padding
        backend="seq2seq" if backbone.encodes else "causal",
        batch_size=batch,
    )


@contextmanager
def _moved(backbone: Backbone, point: Params) -> Iterator[None]:
    """The network's parameters at other values for a while, in place: the harness wants a module.

    Afterwards the module has its own again, and the same ones apart.
    """
    own = {**backbone.encoder_parameters(), **backbone.statistics()}
    every = dict(backbone.network.named_parameters(remove_duplicate=False))
    before = {name: own[name].detach().clone() for name in point}
    try:
        with substituted(backbone.network, every):
            _put(own, point)
            yield
    finally:
        _put(own, before)


@torch.no_grad()
def _put(parameters: Mapping[str, Tensor], values: Params) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)


def _digests(network: nn.Module) -> dict[str, str]:
    """Of every parameter and buffer, by every name that it has."""
    held = {**dict(network.named_parameters(remove_duplicate=False)), **dict(network.named_buffers())}
    known: dict[int, str] = {}
    for tensor in held.values():
        if id(tensor) not in known:
            known[id(tensor)] = _digest(tensor)
    return {name: known[id(tensor)] for name, tensor in held.items()}


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return xxhash.xxh3_128_hexdigest(content.data)


def _check_same(backbone: Backbone, before: Mapping[str, str]) -> None:
    """Refuse figures of another model: the harness ties weights, which the checkpoint may have apart."""
    after = _digests(backbone.network)
    changed = [name for name, digest in before.items() if after.get(name) != digest]
    if changed:
        raise TaskvecError(
            f"{backbone.ref}: lm-eval changed {changed[0]!r}{and_more(changed)}, and its figures would "
            "be of another model; if the checkpoint has apart what its config.json ties, set "
            "'tie_word_embeddings' to false there"
        )


@contextmanager
def _apart(show: bool) -> Iterator[None]:
    """Random numbers of the process as they were, and standard output free of what the harness prints."""
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002  the harness seeds this one
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            if not show:
                null = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stderr(null))
                stack.enter_context(_redirected(null.fileno()))
            stack.enter_context(redirect_stdout(sys.stderr))
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002


@contextmanager
def _without_environment() -> Iterator[None]:
    """The harness leaves out what it asks of pip about this machine: seconds each time."""
    module: Any = sys.modules.get("lm_eval.evaluator")
    asks = getattr(module, "add_env_info", None)
    if asks is None:
        yield
        return
    module.add_env_info = lambda storage: None
    try:
        yield
    finally:
        module.add_env_info = asks


@contextmanager
def _redirected(handle: int) -> Iterator[None]:
    """Standard error to another file, that of programs which the harness starts too."""
    kept = os.dup(2)
    os.dup2(handle, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _scores(results: Mapping[str, Any]) -> dict[str, HarnessScore]:
    """Of every task and group that has metrics; ``acc,none`` is ``acc``."""
    scores = {}
    for task, found in results["results"].items():
        metrics = {
            key.removesuffix(",none"): Figure(float(value), _number(found.get(_stderr_of(key))))
            for key, value in found.items()
            if "," in key and "_stderr," not in key and _number(value) is not None
        }
        if metrics:
            counted = results["n-samples"].get(task)
            scores[task] = HarnessScore(metrics, counted and int(counted["effective"]))
    return scores


def _stderr_of(key: str) -> str:
    metric, _, chosen = key.partition(",")
    return f"{metric}_stderr,{chosen}"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) else None
