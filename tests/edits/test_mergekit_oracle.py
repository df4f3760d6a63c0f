"""The situations of mergekit's own tests: mergekit and this package make the same model of one file.

Runs where the variable MERGEKIT names the program ``mergekit-yaml``.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from taskvec.edits.opening import open_recipe, save_merge

MERGEKIT = os.environ.get("MERGEKIT")
pytestmark = [
    pytest.mark.skipif(MERGEKIT is None, reason="MERGEKIT does not name mergekit-yaml"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing"),  # PEFT asks for it
]

_RUN_ALL = """
import sys
from mergekit.scripts.run_yaml import main
for file in sys.argv[1:]:
    try:
        options = ["--quiet", "--no-write-model-card", "--lora-merge-cache", "merged"]
        main([file, file.removesuffix(".yml") + "-theirs", *options], standalone_mode=False)
    except BaseException as error:
        open(file.removesuffix(".yml") + "-error", "w").write(f"{type(error).__name__}: {error}")
"""
"""One process for all files, as importing mergekit takes longer than its merges."""

# Models


def save_tokenizer(folder: Path, size: int, added: tuple[str, ...] = (), *, swapped: bool = False) -> None:
    words = ["<unk>", "<s>", "</s>", *(f"tok{number}" for number in range(3, size))]
    if swapped:
        words[3], words[4] = words[4], words[3]
    inner = Tokenizer(models.BPE({word: row for row, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")  # type: ignore[no-untyped-call]
    tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(folder)


def llama(size: int = 40) -> LlamaForCausalLM:
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4}
    config = LlamaConfig(vocab_size=size, num_attention_heads=4, num_key_value_heads=2, **shape)
    return LlamaForCausalLM(config)


def phi(size: int) -> PhiForCausalLM:
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 28, "num_hidden_layers": 1}
    return PhiForCausalLM(PhiConfig(vocab_size=size, num_attention_heads=4, **shape))


def gpt2(size: int = 40) -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=size, n_positions=16, n_embd=16, n_layer=3, n_head=2)
    return GPT2LMHeadModel(config)


def bert(size: int = 40) -> BertForMaskedLM:
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return BertForMaskedLM(BertConfig(vocab_size=size, num_attention_heads=2, **shape))


def whisper(size: int = 40) -> WhisperForConditionalGeneration:
    shape: dict[str, Any] = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2}
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sides: dict[str, Any] = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    ids: dict[str, Any] = {
        "pad_token_id": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    return WhisperForConditionalGeneration(WhisperConfig(vocab_size=size, **shape, **heads, **sides, **ids))


def save(network: PreTrainedModel, folder: Path, seed: int) -> None:
    """A network moved far from where it began; all but the first also in a common direction."""
    common, own = (torch.Generator().manual_seed(number) for number in (100, seed))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=own))
            parameter.add_(0.1 * bool(seed) * torch.randn(parameter.shape, generator=common))
    network.save_pretrained(folder)


def save_models(place: Path) -> None:
    for seed, name in enumerate("abcd"):
        torch.manual_seed(0)
        save(llama(), place / name, seed)
        save_tokenizer(place / name, 40)
        for kind, build in (("gpt2", gpt2), ("bert", bert), ("whisper", whisper)):
            torch.manual_seed(0)
            save(build(), place / f"{kind}-{name}", seed)
            save_tokenizer(place / f"{kind}-{name}", 40)
    halves = {
        name: value if "norm" in name else value.bfloat16() for name, value in weights(place / "b").items()
    }
    (place / "mixed").mkdir()
    for file in (place / "b").iterdir():
        (place / "mixed" / file.name).write_bytes(file.read_bytes())
    save_file(halves, place / "mixed" / "model.safetensors", {"format": "pt"})
    vocabularies: dict[str, tuple[int, tuple[str, ...]]] = {
        "chat": (42, ("<|im_start|>", "<|im_end|>")),
        "padded": (40, ("<UNUSED_0>", "<UNUSED_1>", "<UNUSED_2>")),
        "third": (43, ("<tool>", "<|im_start|>", "<image>")),
        "spare": (48, ("<spare>",)),
        "more": (44, ()),
    }
    for seed, (name, (size, added)) in enumerate(vocabularies.items(), start=5):
        torch.manual_seed(0)
        save(llama(size), place / name, seed)
        save_tokenizer(place / name, 44 if name == "more" else 40, added)
    for seed, (name, size, swapped) in enumerate(
        [("phi", 20, False), ("phi-swapped", 20, True), ("phi-large", 24, True)]
    ):
        torch.manual_seed(0)
        save(phi(size), place / name, seed)
        save_tokenizer(place / name, size, swapped=swapped)
    for name, template in (("chat", "{{ messages[0]['content'] }}<|im_end|>"), ("third", "third")):
        (place / name / "chat_template.jinja").write_text(template)
    save_adapter(place)


def save_adapter(place: Path) -> None:
    network = LlamaForCausalLM.from_pretrained(place / "a")
    tuned = get_peft_model(network, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.1)
    tuned.save_pretrained(str(place / "lora"))


def weights(folder: Path) -> dict[str, Tensor]:
    return {
        name: value
        for file in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


# Cases


@dataclass(frozen=True)
class Case:
    """A file, and how near the two results are.

    Attributes:
        text: of the file.
        rtol: relative tolerance of a weight.
        apart: the share of weights that may differ by more, as documented.
        kept: how many rows without a token are kept here, where mergekit cuts them off.
        fails: what mergekit itself ends with.
        template: whether the chat template is the same; that of a model which has all tokens comes with them.
    """

    text: str
    rtol: float = 1e-5
    apart: float = 0.0
    kept: int = 0
    fails: str = ""
    template: bool = True


def two(method: str, base: str | None = None, models: str = "ab", more: str = "", **parameters: float) -> str:
    listed = [
        {"model": name, "parameters": {"weight": weight}}
        for name, weight in zip(models, (0.6, 0.4, 0.3), strict=False)
    ]
    content: dict[str, Any] = {"merge_method": method, "models": listed}
    content["parameters"] = {name.removesuffix("_"): value for name, value in parameters.items()}
    return yaml.safe_dump(content | ({} if base is None else {"base_model": base})) + more


def tokens(
    source: str | Mapping[str, Any] | None,
    models: tuple[str, ...],
    base: str | None = None,
    method: str = "linear",
    parameters: Mapping[str, Any] | None = None,
) -> str:
    content: dict[str, Any] = {"merge_method": method, "dtype": "float32"}
    content["models"] = [{"model": name, "parameters": {"weight": 1.0}} for name in models]
    key = "tokenizer" if isinstance(source, dict) else "tokenizer_source"
    content |= {} if source is None else {key: source}
    content |= {} if base is None else {"base_model": base}
    content |= {} if parameters is None else {"parameters": dict(parameters)}
    return yaml.safe_dump(content)


_FORCED = {
    "tok10": {"source": "chat", "force": True},
    "tok11": {"source": "a", "force": True},
}
_MODEL_TOKENS = {
    "tok20": {"source": {"kind": "model_token", "model": "chat", "token_id": 41}, "force": True},
    "tok21": {"source": {"kind": "model_token", "model": "a", "token": "<s>"}, "force": True},
}
_NEW = {
    "<new>": {"source": {"kind": "model_token", "model": "chat", "token": "tok7"}},
    "<empty>": {"source": {"kind": "zero"}},
}
_FILTERS = "models: [{model: a, parameters: {scale: [{filter: o_proj, value: 0}, {value: 1}]}}]"
_SLICES = """
slices:
  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
    parameters: {t: 0.3}
  - sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [1, 3]}]
parameters:
  t: [{filter: mlp, value: [0.2, 0.9]}, {value: 0.6}]
"""

_NAMES = "required but not present"
"""mergekit looks for tensors that Whisper and a masked BERT do not have."""

CASES: dict[str, Case] = {
    # whole models
    "copy of gpt2": Case("merge_method: passthrough\nmodels: [{model: gpt2-a}]\ndtype: bfloat16"),
    "copy of whisper": Case(
        "merge_method: passthrough\nmodels: [{model: whisper-a}]\ndtype: bfloat16", fails=_NAMES
    ),
    "copy of bert": Case("merge_method: passthrough\nmodels: [{model: bert-a}]", fails=_NAMES),
    "passthrough scaled by filters": Case(f"merge_method: passthrough\n{_FILTERS}"),
    "gpt2 stacked": Case(
        "merge_method: passthrough\ndtype: bfloat16\nslices:\n"
        + 2 * "  - sources: [{model: gpt2-a, layer_range: [0, 3]}]\n"
    ),
    "slices with parameters of their own": Case(f"merge_method: slerp\nbase_model: a\n{_SLICES}"),
    "linear": Case(two("linear")),
    "linear of whisper": Case(
        "merge_method: linear\nmodels: [{model: whisper-a, parameters: {weight: 0.6}}, "
        "{model: whisper-b, parameters: {weight: 0.4}}]",
        fails=_NAMES,
    ),
    "linear of bert": Case(
        "merge_method: linear\nmodels: [{model: bert-a, parameters: {weight: 0.6}}, "
        "{model: bert-b, parameters: {weight: 0.4}}]",
        fails=_NAMES,
    ),
    "linear not normalized": Case(two("linear", normalize=False)),
    "slerp": Case(two("slerp", "a", "b", t=0.35).replace("weight: 0.6", "{}")),
    "task arithmetic": Case(two("task_arithmetic", "c")),
    "task arithmetic with lambda": Case(two("task_arithmetic", "c", lambda_=0.7, normalize=True)),
    "breadcrumbs": Case(two("breadcrumbs", "c", density=0.9, gamma=0.05), apart=0.01),
    "breadcrumbs_ties": Case(two("breadcrumbs_ties", "c", density=0.9, gamma=0.05), apart=0.02),
    "ties": Case(two("ties", "c", density=0.3), apart=0.02),
    "ties of all entries": Case(two("ties", "c")),
    "dare_ties of all entries": Case(two("dare_ties", "c", density=1)),
    "dare_linear of all entries": Case(two("dare_linear", "c", density=1)),
    "della of all entries": Case(two("della", "c", density=1, epsilon=0)),
    "model_stock": Case(two("model_stock", "a", "bc").replace("weight: 0", "weight: 1")),
    "model_stock by rows": Case(two("model_stock", "a", "bc", filter_wise=True)),
    "sce": Case(two("sce", "c", select_topk=0.5), apart=0.02),
    "nuslerp": Case(two("nuslerp")),
    "nuslerp from a base": Case(two("nuslerp", "c")),
    "multislerp": Case(two("multislerp", models="abc")),
    "karcher": Case(two("karcher", models="abc"), rtol=1e-3),
    "arcee_fusion": Case(two("arcee_fusion", "a", "b"), apart=0.01),
    "gradients": Case(two("linear").replace("weight: 0.6", "weight: [0, 0.3, 1]")),
    "an adapter": Case(two("linear", models="ab").replace("model: a", "model: a+lora")),
    # dtypes
    "mixed dtypes": Case(two("linear").replace("model: b", "model: mixed")),
    "input rounded, output wide": Case(
        two("linear", more="dtype: bfloat16\nout_dtype: float32\n").replace("model: b", "model: mixed"),
        rtol=1e-2,
    ),
    "output rounded": Case(two("task_arithmetic", "c", more="out_dtype: bfloat16\n"), rtol=1e-2),
    # chat templates
    "template by name": Case(two("linear", "a", more="chat_template: chatml\n")),
    "template as text": Case(two("linear", "a", more="chat_template: \"{{messages[0]['content']}}\"\n")),
    "long template": Case(
        two("linear", "a", more="chat_template: '{{ messages }}{# " + 300 * "x" + " #}'\n")
    ),
    "most common template": Case(
        tokens("union", ("a", "chat"), "a") + "chat_template: auto\n",
    ),
    # tokenizers
    "tokens of the base": Case(tokens("base", ("a", "padded", "chat"), "a")),
    "tokens of all": Case(tokens("union", ("a", "padded", "chat"), "a"), template=False),
    "tokens of all, base with tokens without rows": Case(
        tokens("union", ("a", "padded", "chat"), "padded"), template=False
    ),
    "tokens of a base with tokens without rows": Case(tokens("base", ("padded", "chat"), "padded")),
    "tokens of a model": Case(tokens("chat", ("a", "padded", "chat"), "a")),
    "tokens of a model, no base": Case(tokens("chat", ("a", "chat", "third"))),
    "tokens of all, no base": Case(tokens("union", ("a", "chat", "third")), template=False),
    "tokens of all, three with their own": Case(tokens("union", ("chat", "third"), "a", "task_arithmetic")),
    "tokens of all, rows to spare": Case(tokens("union", ("a", "spare"), "a"), kept=7),
    "tokens of all, pieces": Case(tokens("union", ("a", "more", "chat"), "a")),
    "tokens of a model with fewer": Case(tokens("a", ("chat", "third"), "chat")),
    "tokens of the base, ties": Case(tokens("base", ("chat", "third"), "a", "ties", {"density": 1.0})),
    "slerp of all tokens": Case(tokens("union", ("a", "chat"), "a", "slerp", {"t": 0.5}), template=False),
    "rows given by force": Case(
        tokens({"source": "union", "tokens": _FORCED}, ("a", "chat"), "a"), template=False
    ),
    "rows of other tokens": Case(tokens({"source": "base", "tokens": _MODEL_TOKENS}, ("a", "chat"), "a")),
    "new tokens": Case(tokens({"source": "base", "tokens": _NEW}, ("a", "chat"), "a"), fails="KeyError"),
    "new tokens, task arithmetic": Case(
        tokens({"source": "union", "tokens": _NEW}, ("b", "chat"), "a", "task_arithmetic"), template=False
    ),
    "rows up to a multiple": Case(tokens({"source": "base", "pad_to_multiple_of": 16}, ("chat",), "chat")),
    "union up to a multiple": Case(
        tokens(
            {"source": "union", "pad_to_multiple_of": 8},
            ("a", "chat", "third"),
            "a",
            "ties",
            {"density": 1.0},
        )
    ),
    "spare rows up to a multiple": Case(
        tokens({"source": "spare", "pad_to_multiple_of": 4}, ("a", "spare"), "a", "task_arithmetic")
    ),
    "phi, rows exchanged": Case(tokens("base", ("phi", "phi-swapped"), "phi")),
    "phi, rows exchanged and more": Case(tokens("base", ("phi", "phi-large"), "phi")),
    "phi, union": Case(tokens("union", ("phi", "phi-large"), "phi")),
    "phi, tokens of the larger": Case(tokens("phi-large", ("phi", "phi-large"), "phi")),
}


@pytest.fixture(scope="session")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the models, the files of all cases, and what mergekit makes of them."""
    assert MERGEKIT is not None
    place = tmp_path_factory.mktemp("mergekit")
    save_models(place)
    files = []
    for number, case in enumerate(CASES.values()):
        files.append(place / f"{number}.yml")
        files[-1].write_text(case.text)
    program = Path(MERGEKIT).read_text().partition("\n")[0].removeprefix("#!").strip()
    names = [file.name for file in files]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([program, "-c", _RUN_ALL, *names], cwd=place, env=offline, check=True, capture_output=True)
    yield place


def by_token(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The rows of each token, of all tensors that have one for each."""
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    size = AutoConfig.from_pretrained(folder).vocab_size
    held = {name: value for name, value in weights(folder).items() if len(value) == size}
    return {name: {token: value[row] for token, row in vocabulary.items()} for name, value in held.items()}


def say_hello(tokenizer: Any) -> str:
    """A conversation by the chat template; templates of one name may differ in their text."""
    said = {"system": "be kind", "user": "hello", "assistant": "hi"}
    messages = [{"role": role, "content": content} for role, content in said.items()]
    return str(tokenizer.chat_template and tokenizer.apply_chat_template(messages, tokenize=False))


def check_close(ours: Tensor, theirs: Tensor, case: Case, name: str) -> None:
    assert ours.shape == theirs.shape, name
    assert ours.dtype == theirs.dtype, name
    far = ~torch.isclose(ours.double(), theirs.double(), rtol=case.rtol, atol=case.rtol * 0.05)
    allowed = max(2, case.apart * far.numel()) if case.apart else 0
    assert far.sum() <= allowed, f"{name}: {int(far.sum())} of {far.numel()} apart"


@pytest.mark.parametrize("name", CASES)
def test_one_file_makes_the_same_model(
    name: str, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, number = CASES[name], list(CASES).index(name)
    monkeypatch.chdir(merged)
    failed, theirs, ours = merged / f"{number}-error", merged / f"{number}-theirs", tmp_path / "ours"
    save_merge(open_recipe(f"{number}.yml"), ours)
    if case.fails:
        assert case.fails in failed.read_text(), "mergekit does it now: compare"
        return
    assert not failed.exists(), failed.read_text()
    mine, other = AutoConfig.from_pretrained(ours), AutoConfig.from_pretrained(theirs)
    assert mine.vocab_size == other.vocab_size + case.kept
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (ours, theirs)]
    assert tokenizers[0].get_vocab().keys() == tokenizers[1].get_vocab().keys()
    if case.template:
        assert say_hello(tokenizers[0]) == say_hello(tokenizers[1])
    rows, their_rows = by_token(ours), by_token(theirs)
    for tensor, held in their_rows.items():
        for token, row in held.items():
            check_close(rows[tensor][token], row, case, f"{tensor} {token!r}")
    made, reference = weights(ours), weights(theirs)
    assert made.keys() == reference.keys()
    for tensor in made.keys() - rows.keys():
        check_close(made[tensor], reference[tensor], case, tensor)
