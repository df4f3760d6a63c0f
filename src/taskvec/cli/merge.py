"""``taskvec merge``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from taskvec.cli._adapters import AS_MODEL, AsAdapter, write_edit
from taskvec.cli._common import Force, Json, Quiet, flattened, print_json
from taskvec.cli._editing import Memory, ShardSize, known_ref
from taskvec.cli._merging import DryRun, OnCluster, PartOption, Resume, refuse_beside, write, write_on_cluster
from taskvec.cli._writing import Target, Writing, check_place
from taskvec.errors import InputError

_Flag = Annotated[bool, Parameter(negative=())]


def merge(
    recipe: Path | None = None,
    /,
    *,
    output: Target | None = None,
    dry_run: DryRun = False,
    scale: float | None = None,
    vocab: str | None = None,
    on_extra: Literal["error", "drop"] | None = None,
    on_missing: Literal["error", "zero"] | None = None,
    memory: Memory = None,
    max_shard_gb: ShardSize | None = None,
    allow_nonfinite: _Flag = False,
    allow_unloadable: _Flag = False,
    resume: Resume = False,
    part: PartOption = None,
    ray: OnCluster = None,
    adapter: Annotated[AsAdapter, flattened()] = AS_MODEL,
    schema: _Flag = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the model that a recipe describes.

    Examples: `taskvec merge recipe.yaml -o OUT`, `taskvec merge recipe.yaml -o OUT --dry-run` for what it
    would read, write and cost, and `taskvec merge --schema > recipe.schema.json` for editors. YAML files of
    mergekit are read as they are. `taskvec merge recipe.yaml --as-adapter -o OUT` makes one LoRA adapter of
    several.

    Args:
        recipe: A YAML file; docs/recipes.md describes it. Paths in it are relative to it, in files of
            mergekit to the working directory.
        output: A folder, which also gets what lies beside the weights of the base, such as config and
            tokenizer, or a .safetensors file; or the URL of one, such as s3://bucket/model.
        scale: The scaling coefficient, in place of the recipe's.
        vocab: Bring models of different vocabularies to that of the base (`base`), to the `union` or
            `intersection` of all, or to that of the model of this name, in place of the recipe's.
        on_extra: What to do with tensors that a model has and the base lacks: refuse, or drop them; in place
            of the recipe's.
        on_missing: What to do with tensors that a model lacks: refuse, or take them as unchanged; in place
            of the recipe's.
        allow_nonfinite: Write NaN and infinities instead of refusing them.
        allow_unloadable: Write a model of which transformers would make tensors at random, or ignore some.
        schema: Print the JSON schema of recipes and end.
    """
    if schema:
        from taskvec.edits.recipe import Recipe

        draft = "https://json-schema.org/draft/2020-12/schema"
        print_json({"$schema": draft, **Recipe.model_json_schema()})
        return
    if recipe is None or output is None:
        missing = "RECIPE" if recipe is None else "--output (-o)"
        raise InputError(f"{missing}: missing, expected taskvec merge RECIPE.yaml -o OUT")
    check_place(output, force=force or resume or part is not None, inputs=[recipe.resolve()])
    if ray is not None:
        refuse_beside("--ray", {"--part": part, "--dry-run": dry_run, "--as-adapter": adapter.as_adapter})
        options = {
            **{"--scale": scale, "--vocab": vocab, "--on-extra": on_extra, "--on-missing": on_missing},
            **{"--memory": memory, "--max-shard-gb": max_shard_gb, "--allow-nonfinite": allow_nonfinite},
            **{"--allow-unloadable": allow_unloadable, "--force": force},
        }
        write_on_cluster(ray, recipe, output, options, json=json)
        return
    writing = Writing(output=output, memory=memory, force=force, json=json, quiet=quiet)
    adapter.check(
        {
            "--dry-run": dry_run,
            "--resume": resume,
            "--part": part,
            "--max-shard-gb": max_shard_gb,
            "--allow-nonfinite": allow_nonfinite,
            "--allow-unloadable": allow_unloadable,
        }
    )
    instead = {"scale": scale, "vocab": vocab, "on_extra": on_extra, "on_missing": on_missing}
    if adapter.as_adapter:
        from taskvec.edits.adapters import open_edit

        write_edit(open_edit(recipe, known=known_ref, **instead), adapter, writing)
        return
    from taskvec.edits.opening import open_recipe

    made = open_recipe(recipe, known=known_ref, **instead)
    made = replace(
        made,
        max_shard_size=made.max_shard_size if max_shard_gb is None else max_shard_gb * 1e9,
        allow_nonfinite=made.allow_nonfinite or allow_nonfinite,
        allow_unloadable=allow_unloadable,
    )
    write(made, writing, dry_run=dry_run, resume=resume, part=part)
