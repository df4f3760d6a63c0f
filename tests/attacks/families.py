"""Every kind of file that taskvec reads: how a small one is made and spoiled, and which commands read it.

A new kind is a function that builds, one that spoils, and an entry in ``FAMILIES``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from attacks import editing, learning, mutations
from attacks.editing import APPLY, EDITS
from attacks.learning import EVAL, EVAL_IMAGES, TRAIN

Spoil = Callable[[Random, Path], str | None]


@dataclass(frozen=True)
class Family:
    """One kind of file.

    Attributes:
        build: makes files in an empty folder, the working directory of the commands.
        spoil: changes them; or gives the text that stands for ``@`` in the command.
        commands: one of these is run.
        files: which files are scrambled byte by byte instead, at times.
        share: how many times as many cases as others it gets.
    """

    build: Callable[[Path], object]
    spoil: Spoil
    commands: Sequence[str]
    files: Sequence[str] = ()
    share: float = 1.0


def of_yaml(name: str, trees: Sequence[Any], values: Sequence[Any]) -> Spoil:
    """Writes one of the trees, spoiled."""
    return lambda draw, place: mutations.spoil_yaml(draw, place / name, draw.choice(trees), values)


def of_json(*patterns: str, values: Sequence[Any] = ()) -> Spoil:
    """Spoils one of the files that match."""
    return lambda draw, place: editing.spoil_some(draw, place, *patterns, values=values)


MERGE = ("merge recipe.yaml -o out -q", "merge recipe.yaml -o out --dry-run")
CONFIGURED = (APPLY, "diff base a -o out.safetensors -q", MERGE[0], "inspect base a --json")
PATTERNS = ("diff base a --rank 1 --only @ -o out -q", MERGE[0], "inspect a.safetensors")
EXPRESSION = "apply base -v a=a.safetensors -v b=b.safetensors -e @ -o out -q"
AGAIN = (f"{APPLY} @", "inspect out")
VECTOR = (
    "inspect @ --json", "apply base -v a=@ -o out -q", "compress @ --form int8 -o out.safetensors -q",
    "apply base -v a=@ -v b=b.safetensors --rule ties -o out.safetensors -q",
    "mask -v a=@ -v b=b.safetensors -o out.safetensors -q",
)  # fmt: skip
PICKLED = ("inspect @", "diff base @ -o out.safetensors -q", "apply @ -v a=a.safetensors -o out -q")
WITH_STATISTICS = (
    "apply base -v a=a.safetensors -v b=b.safetensors --rule fisher --stats a=s-a.safetensors "
    "--stats b=s-b.safetensors -o out -q",
    "inspect s-a.safetensors --json",
)  # fmt: skip
OPTIONED = (
    "apply base -v a=a.safetensors --scale=@ -o out -q",
    "apply base -v a=a.safetensors -v b=b.safetensors --rule ties -p @ -o out -q",
    "apply base -v a=a.safetensors -v b=b.safetensors --rule dare+ties -p @ -o out -q",
    "apply base -v a=a.safetensors --memory=@ -o out -q",
    "apply base -v a=a.safetensors --max-shard-gb=@ -o out -q",
    "compress a.safetensors --form sparse --density=@ -o out.safetensors -q",
    "compress a.safetensors --form int8 --group=@ -o out.safetensors -q",
    "compress a.safetensors --form low-rank --rank=@ -o out.safetensors -q",
    "mask -v a=a.safetensors -v b=b.safetensors --method tall --lam=@ -o out.safetensors -q",
    "diff base a --rank=@ -o out -q",
)  # fmt: skip
NAMED = (
    "inspect @", "diff base @ -o out.safetensors -q", "apply base -v a=@ -o out -q",
    "apply base -v @=a.safetensors -o out -q", "apply base -v a=a.safetensors -o @ -q",
    "compress a.safetensors --form bf16 -o @ -q", "merge @ -o out -q", "run @ -o out -q",
    "run recipe.yaml -o @ -q", "tasks --suite @", "tasks @", "eval @ -s small.yaml -q", "rules @",
    "models @", "@",
)  # fmt: skip
LORA = ("inspect lora --json", "apply base -v a=lora -o out -q", "diff base lora -o out.safetensors -q")
VOCABULARIES = ("diff base a --vocab base -o out.safetensors -q", MERGE[0], "merge mergekit.yaml -o out -q")
SUITES = ("tasks --suite suite.yaml --json", "tasks pets --suite suite.yaml", EVAL)
SHARDED = ("inspect base --json", "diff base pickled -o out.safetensors -q", "inspect pickled", APPLY)

FAMILIES: dict[str, Family] = {
    "weights": Family(editing.models, editing.spoil_weights, EDITS, ("*.safetensors", "base/*"), 2),
    "indexes": Family(
        editing.sharded,
        of_json("*/*.index.json", values=editing.SHARDS),
        SHARDED,
        ("*/*.index.json", "*/*.bin"),
    ),
    "configs": Family(editing.models, editing.spoil_config, CONFIGURED, ("*/*.json",)),
    "modules": Family(
        editing.modules,
        editing.spoil_module,
        CONFIGURED[:2],
        ("*/modules.json", "*/router_config.json", "*/README.md"),
    ),
    "forms": Family(editing.forms, editing.spoil_forms, VECTOR, share=2),
    "statistics": Family(editing.statistics, editing.spoil_statistics, WITH_STATISTICS, ("s-a.safetensors",)),
    "adapters": Family(editing.adapters, editing.spoil_adapter, LORA, ("lora/*",)),
    "patterns": Family(editing.long_names, editing.patterns, PATTERNS, share=0.5),
    "pickles": Family(editing.pickles, editing.spoil_pickle, PICKLED, share=2),
    "recipes": Family(
        editing.recipes,
        of_yaml("recipe.yaml", editing.RECIPES, editing.RECIPE_VALUES),
        MERGE,
        ("recipe.yaml",),
        2,
    ),
    "mergekit": Family(
        editing.recipes, of_yaml("recipe.yaml", editing.MERGEKIT, editing.MERGEKIT_VALUES), MERGE, share=2
    ),
    "suites": Family(
        learning.suites,
        of_yaml("suite.yaml", [learning.SUITE], learning.SUITE_VALUES),
        SUITES,
        ("suite.yaml",),
    ),
    "experiments": Family(
        learning.experiments, learning.spoil_experiment, [learning.WIDE_RUN], ("wide.yaml",)
    ),
    "expressions": Family(editing.models, editing.expression, [EXPRESSION]),
    "options": Family(editing.models, editing.option, OPTIONED),
    "names": Family(editing.recipes, editing.name, NAMED),
    "tables": Family(learning.tables, learning.spoil_table, [learning.EVAL_TABLE]),
    "archives": Family(learning.archives, learning.spoil_archive, [EVAL_IMAGES], ("d.npz",)),
    "images": Family(learning.images, learning.spoil_image, [EVAL_IMAGES]),
    "vocabularies": Family(
        editing.vocabularies,
        editing.spoil_vocabulary,
        VOCABULARIES,
        ("*/tokenizer*.json", "*/added_tokens.json"),
    ),
    "backbones": Family(learning.suites, learning.spoil_backbone, [EVAL], ("bert/*",)),
    "runs": Family(learning.finished_run, learning.spoil_run, [learning.RUN], ("run/records.jsonl",), 0.5),
    "trainings": Family(
        learning.interrupted_training, learning.spoil_training, [f"{TRAIN} --resume"], (learning.STATE,), 0.5
    ),
    "journals": Family(
        editing.interrupted_edit,
        editing.spoil_journal,
        [editing.RESUME],
        (".out.partial/*", ".out.partial/out/*"),
    ),
    "manifests": Family(editing.edited_before, editing.spoil_manifest, AGAIN, ("out/taskvec.json",), 0.5),
    "links": Family(editing.recipes, editing.spoil_links, (*EDITS, MERGE[0])),
}
