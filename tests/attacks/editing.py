"""Models, vectors, adapters, recipes and what else edits read: small ones, and ways to spoil them."""

import contextlib
import io
import json
import os
import shutil
import socket
import tarfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from attacks import mutations
from attacks.mutations import VALUES, rewrite, scrambled, spoil_json
from taskvec.cli import main
from taskvec.vectors import TaskVector
from taskvec.vectors.stored.masked import emr, tall_masks
from taskvec.weights import save_weights
from vocabularies import CHAT, save_base, save_tuned
from vocabularies import WORDS as TOKENS

SHAPES = {
    "embed.weight": (6, 4), "layers.0.mlp.weight": (4, 4), "layers.1.mlp.weight": (4, 4),
    "layers.1.bias": (4, ),
}  # fmt: skip


SECRET = b"nobody but their owner may have this"
"""What lies beside the folders that commands are given. No output may hold it."""


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def tuned(seed: int) -> dict[str, Tensor]:
    step = state(seed)
    return {name: value + 0.1 * step[name] for name, value in state(0).items()}


def models(place: Path) -> None:
    """A base with files beside it, two models, and their task vectors."""
    save_weights(state(0), place / "base")
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 4,
        "vocab_size": 6,
        "dtype": "float32",
    }
    (place / "base" / "config.json").write_text(json.dumps(config))
    (place / "base" / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": ""}, {"idx": 1, "path": "1_Pooling"}]'
    )
    (place / "base" / "1_Pooling").mkdir()
    (place / "base" / "1_Pooling" / "config.json").write_text("{}")
    (place / "base" / "notes.txt").write_text("of the base")
    for seed, name in enumerate(("a", "b"), start=1):
        save_weights(tuned(seed), place / name)
        shutil.copy(place / "base" / "config.json", place / name)
        vector = TaskVector.between(place / "base", place / name)
        vector.save(place / f"{name}.safetensors", task=name)


def modules(place: Path) -> None:
    """The same, with modules that hold weights, chosen among by another, and a licence."""
    models(place)
    routed = {"types": {"2_Dense": "Dense", "q/0": "Static"}, "structure": {"q": ["q/0"], "d": ["2_Dense"]}}
    for seed, name in enumerate(("base", "a")):
        (place / name / "modules.json").write_text(
            '[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]'
        )
        (place / name / "router_config.json").write_text(json.dumps(routed))
        (place / name / "README.md").write_text("---\nlicense: mit\nlicense_name: [x]\n---\n# Base\n")
        for module in ("2_Dense", "q/0"):
            (place / name / module).mkdir(parents=True)
            save_file(
                {"linear.weight": torch.full((2, 4), float(seed))},
                place / name / module / "model.safetensors",
            )
    TaskVector.between(place / "base", place / "a").save(place / "a.safetensors", force=True)


def spoil_module(draw: Random, place: Path) -> None:
    if draw.random() < 0.3:
        rewrite(some(draw, place, "*/2_Dense/*", "*/q/0/*"), partial(mutations.spoiled_header, draw))
    elif draw.random() < 0.3:
        rewrite(place / "base" / "README.md", partial(scrambled, draw))
    else:
        values = (
            "",
            "1_Pooling",
            "..",
            "../a",
            "q",
            ".",
            "2_Dense/",
            "q/0/..",
            "/etc",
            "model.safetensors",
            [0],
        )
        spoil_some(draw, place, "*/modules.json", "*/router_config.json", values=values)


APPLY = "apply base -v a=a.safetensors -o out -q"


EDITS = (
    APPLY, 'apply base -v a=a.safetensors -v b=b.safetensors -e "0.4*a - b" -o out.safetensors -q',
    "apply base -v a=a.safetensors -v b=b.safetensors --rule ties -p keep=0.5 -o out -q",
    "diff base a -o out.safetensors -q", "inspect base a.safetensors b.safetensors --json",
    "inspect base --headers",
)  # fmt: skip


def some(draw: Random, place: Path, *patterns: str) -> Path:
    """One of the files that match."""
    return draw.choice(sorted(file for pattern in patterns for file in place.glob(pattern) if file.is_file()))


def spoil_some(draw: Random, place: Path, *patterns: str, values: Sequence[Any] = ()) -> None:
    spoil_json(draw, some(draw, place, *patterns), values)


def spoil_weights(draw: Random, place: Path) -> None:
    file = some(draw, place, "base/*.safetensors", "a/*.safetensors", "*.safetensors")
    rewrite(file, partial(mutations.spoiled_header, draw))


def sharded(place: Path) -> None:
    models(place)
    for name in ("base", "a"):
        shutil.rmtree(place / name)
    save_weights(state(0), place / "base", max_shard_size=100)
    save_weights(tuned(1), place / "a", max_shard_size=100)
    index = {"metadata": {"total_size": 1}, "weight_map": {}}
    (place / "pickled").mkdir()
    for at, (name, value) in enumerate(state(2).items()):
        torch.save({name: value}, place / "pickled" / f"pytorch_model-{at}.bin")
        index["weight_map"][name] = f"pytorch_model-{at}.bin"  # type: ignore[assignment]
    (place / "pickled" / "pytorch_model.bin.index.json").write_text(json.dumps(index))


SHARDS = (
    "model-00001-of-00003.safetensors", "../a.safetensors", "a/../a.safetensors", "config.json", ".",
    "pytorch_model-0.bin",
)  # fmt: skip


PROVENANCE = (
    10**9, 10**18, -1, 0, 1.5, "int8", "1-bit", "sparse", "low-rank", "bf16", "emr", "tall", [10**9, 10**9],
    [0], [-1],
)  # fmt: skip


def forms(place: Path) -> None:
    """A vector in every form."""
    models(place)
    vector, other = (TaskVector.load(place / f"{name}.safetensors") for name in "ab")
    vector.save(place / "x-bf16.safetensors", form="bf16")
    vector.save(place / "x-sparse.safetensors", form="sparse", density=0.3)
    vector.save(place / "x-low.safetensors", form="low-rank", rank=1)
    vector.save(place / "x-int8.safetensors", form="int8", group=8)
    vector.save(place / "x-bit.safetensors", form="1-bit", group=8)
    vector.save(place / "x-dense.safetensors")
    emr({"a": vector, "b": other}).save(place / "m-emr.safetensors")
    tall_masks({"a": vector, "b": other}, lam=0.4).save(place / "m-tall.safetensors")


def _other_settings(draw: Random, data: bytes) -> bytes:
    """A vector with other numbers of its form or masks, or other shapes of what is stored in parts."""
    header, tensors = mutations.split_safetensors(data)
    said = json.loads(header["__metadata__"]["taskvec"])
    form = said.get("compact") or said.get("masks") or {}
    parts = [form.get("settings"), form.get("coded"), form.get("factors"), said.get("unchanged")]
    part = draw.choice([part for part in parts if part] or [said])
    part[draw.choice(list(part))] = draw.choice(PROVENANCE)
    header["__metadata__"]["taskvec"] = json.dumps(said)
    return mutations.joined_safetensors(json.dumps(header), tensors)


def spoil_forms(draw: Random, place: Path) -> str:
    file = some(draw, place, "x-*.safetensors", "m-*.safetensors")
    kind = draw.random()
    if kind < 0.3:
        rewrite(file, partial(_other_settings, draw))
    elif kind < 0.7:
        rewrite(file, lambda data: mutations.spoiled_metadata(draw, data, "taskvec", PROVENANCE))
    else:
        rewrite(file, partial(mutations.spoiled_header, draw))
    return file.name if file.name.startswith("x") else f"{file.name}#a"


def statistics(place: Path) -> None:
    """Statistics of both vectors, as ``taskvec stats`` stores them."""
    models(place)
    for name in "ab":
        info = {
            "format": 1,
            "kind": "fisher",
            "model": {"ref": name},
            "task": name,
            "data": "0" * 32,
            "split": "train",
        }
        said = json.dumps({**info, "examples": 8, "seed": 0, "labels": "all"})
        squares = {key: value**2 for key, value in state(5).items()}
        save_weights(squares, place / f"s-{name}.safetensors", metadata={"taskvec_statistics": said})


def spoil_statistics(draw: Random, place: Path) -> None:
    rewrite(
        place / "s-a.safetensors", lambda data: mutations.spoiled_metadata(draw, data, "taskvec_statistics")
    )


def adapters(place: Path) -> None:
    """LoRA of two layers and of an embedding, with a bias saved whole."""
    models(place)
    generator = torch.Generator().manual_seed(7)
    factors = {"layers.1.bias": tuned(3)["layers.1.bias"]}
    for layer, names in (
        ("layers.0.mlp", ("lora_A.weight", "lora_B.weight")),
        ("embed", ("lora_embedding_A", "lora_embedding_B")),
    ):
        outputs, inputs = (6, 4) if layer == "embed" else (4, 4)
        shapes = ((2, outputs), (inputs, 2)) if layer == "embed" else ((2, inputs), (outputs, 2))
        for name, shape in zip(names, shapes, strict=True):
            factors[f"{layer}.{name}"] = torch.randn(shape, generator=generator)
    named = {f"base_model.model.{name}": value for name, value in factors.items()}
    save_weights(named, place / "lora" / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
        "lora_bias": False,
        "target_modules": ["mlp"],
        "alpha_pattern": {"layers.0.mlp": 8},
        "rank_pattern": {},
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "base_model_name_or_path": "base",
        "modules_to_save": None,
        "layers_pattern": None,
    }
    (place / "lora" / "adapter_config.json").write_text(json.dumps(settings))


HANG = (
    "(a+)+$", "(([a-z._0-9]+)+)+!", "(.*)*x", "(a|a)*b" * 20, "(?:x{1000}){1000}",
    "((.*)(.*)(.*)(.*))*\\1!", "(?P<a", "[", "\\",
)  # fmt: skip
"""Patterns that a backtracking matcher never gets through, and some that are none."""


PATTERNS = [{pattern: 2} for pattern in HANG]


def spoil_adapter(draw: Random, place: Path) -> None:
    if draw.random() < 0.7:
        spoil_json(
            draw,
            place / "lora" / "adapter_config.json",
            (*PATTERNS, "DORA", "eva", "pissa", "bd-lora", 8, 0, 1e308),
        )
    else:
        rewrite(place / "lora" / "adapter_model.safetensors", partial(mutations.spoiled_header, draw))


def patterns(draw: Random, place: Path) -> str:
    """A regular expression of parts that multiply; also put into a recipe."""
    parts = [
        "a",
        ".",
        "[a-z]",
        "(a+)",
        "(.*)",
        "\\w",
        "layers",
        "(a|aa)",
        "x?",
        "(?=a)",
        "\\1",
        "mlp",
        "weight",
    ]
    text = "".join(
        draw.choice(parts) + draw.choice(("", "+", "*", "{2,}", "?", "{1,99}"))
        for _ in range(draw.randint(1, 8))
    )
    pattern = draw.choice((*HANG, f"({text})+!", f"({text})*$", text))
    filters = {"filters": [{"match": f"re:{pattern}", "value": 0.5}], "default": 1.0}
    document = {"base": "base", "vectors": {"a": "a.safetensors"}, "expression": "a", "scale": filters}
    (place / "recipe.yaml").write_text(yaml.safe_dump(document))
    return f"re:{pattern}"


def long_names(place: Path) -> None:
    """Models whose tensors have names on which patterns may hang."""
    name = "layers.0.self_attn.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.weight"
    for seed, model in enumerate(("base", "a")):
        save_weights({name: torch.full((4, 4), float(seed))}, place / model)
    TaskVector.between(place / "base", place / "a").save(place / "a.safetensors")
    (place / "recipe.yaml").write_text("{base: base, vectors: {a: a.safetensors}}")


def pickles(place: Path) -> None:
    models(place)
    torch.save(tuned(1), place / "new.bin")
    torch.save(tuned(1), place / "old.bin", _use_new_zipfile_serialization=False)


def _nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


class _Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch RAN",)


ODD: dict[str, Callable[[], Any]] = {
    "conjugate": lambda: torch.zeros(4, 4, dtype=torch.complex64).conj(), "negative": lambda: torch.zeros(4,
    4, dtype=torch.complex64).conj().imag, "nested": _nested,
    "stride 0": lambda: torch.zeros(1).expand(10**6, 10**6),
    "stride 0, four": lambda: torch.zeros(1).expand(4, 4),
    "overlapping": lambda: torch.as_strided(torch.zeros(8), (4, 4), (1, 1)),
    "transposed": lambda: torch.randn(4, 4).T, "sparse": lambda: torch.eye(4).to_sparse(),
    "sparse rows": lambda: torch.eye(4).to_sparse_csr(),
    "sparse of 10^12": lambda: torch.sparse_coo_tensor(torch.zeros(2, 0), torch.zeros(0), (10**6, 10**6)),
    "quantized": lambda: torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8),
    "meta": lambda: torch.zeros(4, 4, device="meta"), "parameter": lambda: torch.nn.Parameter(torch.zeros(4,
    4)), "complex": lambda: torch.zeros(4, 4, dtype=torch.complex128), "nan": lambda: torch.full((4, 4),
    torch.nan), "float8": lambda: torch.zeros(4, 4).to(torch.float8_e4m3fn), "empty": lambda: torch.zeros(0,
    4), "scalar": lambda: torch.tensor(1.0), "code": _Runs, "number": lambda: 3, "text": lambda: "a" * 1000,
    "array": lambda: np.zeros((4, 4), np.float32), "storage": lambda: torch.zeros(4).untyped_storage(),
    "self": lambda: _holding_itself(), "deep": lambda: _deep(),
}  # fmt: skip


def _holding_itself() -> list[Any]:
    held: list[Any] = []
    held.append(held)
    return held


def _deep() -> Any:
    tree: Any = 0
    for _ in range(200):
        tree = {"state_dict": tree}
    return tree


def spoil_pickle(draw: Random, place: Path) -> str:
    file = place / draw.choice(("new.bin", "old.bin"))
    kind = draw.random()
    if kind < 0.45:
        content: Any = tuned(1)
        key = draw.choice(
            (*SHAPES, *SHAPES, "extra", "", "a\x1b[31mb", 3, None, ("a", 1), "\ud800", "a" * 300)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remark that quantized tensors are on their way out
            content[key] = ODD[draw.choice(sorted(ODD))]()
        content = draw.choice(
            (content, content, {"state_dict": content}, {"state_dict": [content]}, [content], content[key])
        )
        with contextlib.suppress(Exception):  # not all of it can be stored
            torch.save(content, file, _use_new_zipfile_serialization=file.name == "new.bin")
    elif kind < 0.8:
        rewrite(place / "new.bin", partial(mutations.spoiled_zip, draw))
        return "new.bin"
    elif kind < 0.85:
        with tarfile.open(file, "w") as archive:
            for name in ("storages", "tensors", "pickle", "../x"):
                member = tarfile.TarInfo(name)
                member.size = 8
                archive.addfile(member, io.BytesIO(draw.randbytes(8)))
    else:
        rewrite(file, partial(scrambled, draw))
    return file.name


RECIPES: tuple[dict[str, Any], ...] = (
    {"base": "base", "vectors": {"b": "b.safetensors"}, "models": {"a": "a"}, "expression": "0.4*a - b",
    "scale": 0.5}, {"base": "base", "models": {"a": "a", "b": "b"}, "rule": "dare+ties",
    "parameters": {"keep": 0.5, "drop": 0.2, "seed": 3}}, {"base": "base", "models": {"a": "a", "b": "b"},
    "rule": "sum", "dtype": "bfloat16", "max_shard_gb": 1.0, "on_extra": "drop",
    "scale": {"filters": [{"match": "mlp", "value": [0.1, 0.9]}, {"match": "re:emb.*", "value": 0.2}],
    "default": 0.2}, "parameters": {"weights": {"a": 0.5, "b": {"filters": [{"match": "mlp", "value": 1.0}],
    "default": 0.1}}} },
)  # fmt: skip


RECIPE_VALUES = (
    "a", "b", "base", "a.safetensors", "x.bin", "a*b", "ties", "tsv+lines", "emr", "sum+sum", {"value": [0,
    1]}, [0.0, 1.0], HANG[0],
)  # fmt: skip


def recipes(place: Path) -> None:
    models(place)
    (place / "recipe.yaml").write_text(yaml.safe_dump(RECIPES[0]))


MERGEKIT: tuple[dict[str, Any], ...] = (
    {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 0.5}}, {"model": "b",
    "parameters": {"weight": 1}}]}, {"merge_method": "ties", "base_model": "base", "dtype": "float32",
    "parameters": {"normalize": True, "int8_mask": True}, "models": [{"model": "a",
    "parameters": {"weight": 0.5, "density": [0.1, 0.9]}}, {"model": "b"}] }, {"merge_method": "slerp",
    "base_model": "a", "parameters": {"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]},
    "slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [0,
    2]}]}] }, {"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [0,
    1]}]}, {"sources": [{"model": "b", "layer_range": [0, 2], "parameters": {"scale": 0.5}}]}],
    "tokenizer": {"source": "base"}, "chat_template": "auto", "out_dtype": "float16" },
    {"merge_method": "model_stock", "base_model": {"model": {"path": "base"}}, "normalize": True, "models":
    ["a", {"model": {"model": "b", "lora": None}, "layer_range": [0, 2], "parameters": {"weight": 1}}]},
)  # fmt: skip


MERGEKIT_VALUES = (
    "a", "b", "base", "a+b", "a+b+a", "linear", "dare_ties", "slerp", "passthrough", "auto", "union", [0,
    10**9], [1, 0], [0, 1], HANG[1],
)  # fmt: skip


def called(*arguments: str) -> None:
    """Run a command in this process, in silence."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(arguments)


def interrupted_edit(place: Path) -> None:
    """An edit that was killed after its first shard."""
    models(place)

    def stop(label: str, done: int, total: int, **facts: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    from taskvec.vectors import apply

    vector = TaskVector.load(place / "a.safetensors")
    with contextlib.suppress(KeyboardInterrupt):
        save_weights(
            apply(place / "base", vector), place / "out", max_shard_size=100, watch=stop, resume=True
        )


RESUME = "apply base -v a=a.safetensors -o out --max-shard-gb 1e-7 --resume -q"


def spoil_journal(draw: Random, place: Path) -> None:
    partial_folder = place / ".out.partial"
    journal = partial_folder / "journal.json"
    if journal.is_file() and draw.random() < 0.8:
        spoil_json(draw, journal, (*SHARDS, "", "../../base/model.safetensors", "..", "0" * 32))
    else:
        journal.unlink(missing_ok=True)
        (partial_folder / draw.choice(("journal.json", "out", "replaced"))).mkdir(parents=True, exist_ok=True)


def edited_before(place: Path) -> None:
    """An output that is there already, written by us."""
    models(place)
    with contextlib.chdir(place):
        called(*APPLY.split())


def vocabularies(place: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        save_base(place / "base")
        save_tuned(place / "base", place / "a", "llama", [*CHAT, *TOKENS])
    (place / "a" / "added_tokens.json").write_text('{"<start>": 0}')
    document = {"base": "base", "models": {"a": "a"}, "expression": "a", "vocab": "union"}
    (place / "recipe.yaml").write_text(yaml.safe_dump(document))
    merge = {
        "merge_method": "linear",
        "base_model": "base",
        "models": [{"model": "a"}],
        "tokenizer_source": "union",
        "parameters": {"weight": 1},
    }
    (place / "mergekit.yaml").write_text(yaml.safe_dump(merge))


TOKEN_VALUES: tuple[Any, ...] = (
    20, 21, 10**9, -5, "word1", "[UNK]", "<start>", {"content": "x", "id": 3}, {"vocab": []}, [["word0",
    0.0]],
)  # fmt: skip


def spoil_vocabulary(draw: Random, place: Path) -> None:
    spoil_some(draw, place, "*/tokenizer*.json", "*/config.json", "*/added_tokens.json", values=TOKEN_VALUES)


WORDS_OF_EXPRESSIONS = (
    "a", "b", "c", "0.5", "1e308", "1e999", "10", "0", "-", "+", "*", "/", "(", ")", " ", "a", "+", "*",
    "**", "//", "%", "@", ".", ",", "[0xfff]", "[0x" + "f" * 6000 + "]", "9" * 6000, "1_0", "1j", "True",
    "None", "'a'", 'f"{a}"', "a.b", "a[0]", "a()", "lambda: a", "\n", "\\", "#", "é", "\x1b[31m", "\0",
    "__import__('os')", "{a}", "a if b else a", "not a", "a == b", "\udcff", "(" * 300, "-" * 5000, ":=",
)  # fmt: skip


def expression(draw: Random, place: Path) -> str:
    if draw.random() < 0.2:
        return "(" * (deep := draw.choice((50, 90, 500, 5000))) + "a" + ")" * deep
    if draw.random() < 0.1:
        return draw.choice(("+", "*0.5+", "-")).join(["a"] * draw.choice((2, 100, 20_000)))
    parts = [draw.choice(("a", "0.5*a", "a - b", "(a)", "a/2"))]
    for _ in range(draw.randint(1, 6)):
        parts.insert(draw.randrange(len(parts) + 1), draw.choice(WORDS_OF_EXPRESSIONS))
    return "".join(parts)


OPTIONS = (
    "nan", "inf", "-inf", "0", "-0", "-1", "1e308", "1e-320", "1e999", "2", "0.5", "9" * 6000, "", " ", "a",
    "0x10", "1_000", "²", "٣", "keep=nan", "keep=0", "keep=1e-320", "keep=2", "keep=", "=1", "keep=0.5=1",
    "kep=1", "scale=inf", "1MB", "1e3MB", "0MB", "9" * 400 + "GB", "999999999999999TB", "1.5GiB", "-1GB",
    "a=0.4", "a=nan", "a=0.4=b", "float16", "\x1b[31m", "1000000000", "1000000000000000000000",
)  # fmt: skip


def option(draw: Random, place: Path) -> str:
    if draw.random() < 0.7:
        return draw.choice(OPTIONS)
    return draw.choice(("", "keep=", "a=", "drop=")) + str(
        draw.choice((draw.uniform(-2, 2), draw.randint(-9, 10**12), draw.gauss(0, 1e200)))
    )


def name(draw: Random, place: Path) -> str:
    """A name of a file, or none."""
    fixed = [value for value in VALUES if isinstance(value, str) and not {"\0", "\ud800"} & {*value}]
    letters = ["a", "é", "\x1b[31m", *"\n\r\x07\udcff /.~#@{$-=", "[bold]", "%"]
    return draw.choice(
        (
            draw.choice(fixed),
            draw.choice(("a", "é")) * draw.choice((100, 250, 255, 256, 5000))
            + draw.choice(("", ".safetensors", ".yaml", ".bin")),
            "".join(draw.choice(letters) for _ in range(draw.randint(1, 12))),
            "new" + draw.choice(letters) + draw.choice(("", ".safetensors")),
        )
    )


LINKED = (
    "base/config.json",
    "base/notes.txt",
    "base/model.safetensors",
    "base/modules.json",
    "base/1_Pooling",
    "a.safetensors",
    "a/model.safetensors",
    "a/config.json",
    "recipe.yaml",
    "base/tokenizer.json",
    "base/extra.txt",
    "base/1_Pooling/x.json",
    "base/README.md",
    "base",
)


def spoil_links(draw: Random, place: Path) -> None:
    """Something else where a file should be."""
    file = place / draw.choice(LINKED)
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    file.parent.mkdir(exist_ok=True)
    match draw.randrange(7):
        case 0:
            os.mkfifo(file)
        case 1:
            with contextlib.chdir(file.parent), socket.socket(socket.AF_UNIX) as made:
                made.bind(file.name)
        case 2:
            file.mkdir()
        case 3:
            file.symlink_to(draw.choice(("/dev/zero", "/dev/stdin", "/proc/self/mem", "/dev/tty")))
        case 4:
            file.symlink_to(draw.choice((file.name, "nowhere", ".", "..")))
        case _:
            secret = place.parent / "secret"
            secret.write_bytes(SECRET)
            file.symlink_to(draw.choice((secret, Path(os.path.relpath(secret, file.parent)), secret.parent)))


def spoil_config(draw: Random, place: Path) -> None:
    values = ("", "1_Pooling", "..", "../a", "a", [0], 2, 10**9, "gpt2", "/nowhere", "../../base")
    spoil_some(draw, place, "base/*.json", "a/*.json", values=values)


def spoil_manifest(draw: Random, place: Path) -> str:
    if draw.random() < 0.5:
        spoil_json(draw, place / "out" / "taskvec.json")
    else:
        (place / "out" / draw.choice(("new", "taskvec.json.bak", "sub"))).mkdir()
    return draw.choice(("", "--force"))
