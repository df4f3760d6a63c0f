"""What the commands make of a family of models: edits, adapters out and in, slices; by what transformers and
PEFT load."""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from architectures.families import Family
from taskvec.cli import main

RANK = 2
State = Mapping[str, Tensor]


class Failed(Exception):
    """The commands, or what they wrote, did not do what they promise."""


class Idle(Exception):
    """A check that a family gives no occasion for."""


@dataclass(frozen=True)
class Record:
    """What came out of the checks of a family; of each ``ok`` with a remark, ``idle: …`` or ``failed: …``."""

    family: str
    architecture: str
    kind: str
    parameters: int
    edit: str
    adapter_out: str
    adapter_in: str
    slices: str

    @property
    def failures(self) -> list[str]:
        """What failed."""
        outcomes = {name: text for name, text in asdict(self).items() if isinstance(text, str)}
        return [f"{name} {text}" for name, text in outcomes.items() if text.startswith("failed")]


def check(family: Family, folder: Path) -> Record:
    """Save a model of the family and a fine-tuned one, and run all checks on them.

    Raises: Idle for a model that cannot be saved and loaded again.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers and PEFT say of tiny models is not ours
        model = family.build()
        model.save_pretrained(folder / "base")
        expect_loading(family, folder / "base")
        tune(model)
        model.save_pretrained(folder / "tuned")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        checks = (check_edit, check_adapter_out, check_adapter_in, check_slices)
        outcomes = [outcome_of(one, family, folder) for one in checks]
    return Record(family.name, family.architecture, family.kind, parameters, *outcomes)


def expect_loading(family: Family, folder: Path) -> None:
    """Raise Idle for a model that transformers does not load as it saved it."""
    try:
        _, report = load(family, folder)
    except Exception as error:
        raise Idle(f"transformers does not load what it saved ({type(error).__name__})") from None
    if report["missing_keys"] and report["unexpected_keys"]:
        raise Idle("transformers does not find the tensors that it saved")


def outcome_of(check: Callable[[Family, Path], str], family: Family, folder: Path) -> str:
    """What a check came to, in words."""
    try:
        return f"ok {check(family, folder)}".strip()
    except Idle as reason:
        return f"idle: {reason}"
    except Failed as reason:
        return "ok (refused)" if "NaN or infinite" in str(reason) else f"failed: {reason}"
    except Exception as error:  # of transformers, for a folder that it cannot load
        return f"failed: {type(error).__name__}: {error}"


def tune(model: Any) -> None:
    """Change every floating-point parameter; matrices by one of a low rank."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.dim() < 2:
                parameter.add_(0.01 * torch.randn_like(parameter))
                continue
            *many, rows, columns = parameter.shape
            parameter.add_(0.05 * torch.randn(*many, rows, RANK) @ torch.randn(*many, RANK, columns))


def check_edit(family: Family, folder: Path) -> str:
    """``diff`` and ``apply`` give what adding the difference to the loaded weights does, to the bit."""
    run("diff", folder / "base", folder / "tuned", "-o", folder / "vector.safetensors")
    run("apply", folder / "base", "-v", f"t={folder / 'vector.safetensors'}", "-o", folder / "edited")
    base, before = load(family, folder / "base")
    tuned, _ = load(family, folder / "tuned")
    made, after = load(family, folder / "edited")
    expect_same_loading(before, after)
    for name in made.keys() - set(before["missing_keys"]):
        change = tuned[name] - base[name] if base[name].is_floating_point() else None
        if not torch.equal(made[name], base[name] if change is None else base[name] + change):
            raise Failed(f"{name} is not the base plus the difference")
    return ""


def check_adapter_out(family: Family, folder: Path) -> str:
    """``diff --rank`` writes an adapter of which PEFT reaches every matrix."""
    out = folder / "extracted"
    try:
        printed = run("diff", folder / "base", folder / "tuned", "--rank", RANK, "-o", out, "--json")
    except Failed as reason:
        if "no matrix of a linear layer" in str(reason) or "expected at most" in str(reason):
            raise Idle("no linear layers") from None
        raise
    said = json.loads(printed)
    base, _ = load(family, folder / "base")
    tuned, _ = load(family, folder / "tuned")
    try:
        wrapped = PeftModel.from_pretrained(family.model_class.from_pretrained(folder / "base"), str(out))
        made = wrapped.merge_and_unload().state_dict()
    except Exception as error:
        raise Failed(f"PEFT: {type(error).__name__}: {error}") from None
    changed = [name for name in made if name in base and not torch.equal(made[name], base[name])]
    wrong = [name for name in changed if not torch.allclose(made[name], tuned[name], atol=1e-4)]
    if wrong:
        raise Failed(f"{wrong[0]} and {len(wrong) - 1} more are not those of the fine-tuned model")
    reached = sum(max(1, made[name].shape[:-2].numel()) for name in changed)
    if not changed or reached < said["matrices"]:
        raise Failed(f"PEFT reaches {reached} of {said['matrices']} matrices")
    matrices = [name for name in tuned if tuned[name].dim() == 2 and not torch.equal(tuned[name], base[name])]
    left = [name for name in matrices if name not in changed]
    return f"{len(changed)} reached" + (f", {len(left)} left out" if left else "")


def check_adapter_in(family: Family, folder: Path) -> str:
    """An adapter that PEFT made of the loaded model is applied as PEFT merges it."""
    model = family.model_class.from_pretrained(folder / "base")
    try:
        torch.manual_seed(1)
        config = LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)
        adapted = get_peft_model(model, config)
        adapted.save_pretrained(str(folder / "adapter"))
        expected = adapted.merge_and_unload().state_dict()
    except Exception as error:
        raise Idle(f"PEFT makes none ({type(error).__name__})") from None
    try:
        run("apply", folder / "base", "-v", f"a={folder / 'adapter'}", "-o", folder / "merged")
    except Failed as reason:
        if "shares its weights with" in str(reason):
            raise Idle("changes one use of shared weights") from None
        raise
    made, _ = load(family, folder / "merged")
    off = [n for n in made if n in expected and not torch.allclose(made[n], expected[n], atol=1e-5)]
    if off:
        raise Failed(f"{off[0]} and {len(off) - 1} more differ from PEFT's")
    return ""


def check_slices(family: Family, folder: Path) -> str:
    """A model with a layer more loads without a missing tensor, or is refused."""
    config = json.loads((folder / "base" / "config.json").read_text())
    inner = config.get("text_config") or config
    depth = next((inner[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in inner), 0)
    if not isinstance(depth, int) or depth < 2:
        raise Idle("no layers")
    ranges = ([0, depth - 1], [0, depth])
    lines = [f"  - sources: [{{model: {folder / 'base'}, layer_range: {layers}}}]" for layers in ranges]
    recipe = folder / "slices.yml"
    recipe.write_text("\n".join(("merge_method: passthrough", "slices:", *lines)) + "\n")
    code, _, said = invoke("merge", recipe, "-o", folder / "sliced")
    if code == 2:
        return "(refused)"
    if code:
        raise Failed(f"exit {code}: {said}")
    _, before = load(family, folder / "base")
    _, after = load(family, folder / "sliced")
    expect_same_loading(before, after)
    return f"({2 * depth - 1} layers)"


def expect_same_loading(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Refuse a model that loads with other complaints than its base."""
    for key in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if more := set(after[key]) - set(before[key]):
            raise Failed(f"{len(more)} {key} when loaded, such as {min(map(str, more))}")


def load(family: Family, folder: Path) -> tuple[State, Mapping[str, Any]]:
    """The state dict of a folder as transformers loads it, and its report."""
    model, report = family.model_class.from_pretrained(folder, output_loading_info=True)
    return model.state_dict(), report


def run(*arguments: object) -> str:
    """What a command prints.

    Raises: Failed with its message if it does not end well.
    """
    code, printed, said = invoke(*arguments)
    if code:
        raise Failed(f"{arguments[0]}: exit {code}: {said}")
    return printed


def invoke(*arguments: object) -> tuple[int, str, str]:
    """The exit code of a command, what it prints, and its last line on standard error."""
    printed, said = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(said), pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    code = int(end.value.code or 0)
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    return code, printed.getvalue(), lines[-1] if lines else ""
