"""Files for mergekit in the forms in which people publish them, each with the models of a tiny family.

Every form is one that mergekit runs. Those that are refused here say why.
"""
# ruff: noqa: E501  # the files read best in the lines that they have

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LAYERS = 4
BASE, CHAT, MATH, CODE, LORA, WIDE = (
    "tiny-0.1B-base",
    "Chat.v2",
    "math_0.1b-hf",
    "CODE-0.1B",
    "lora-r2",
    "tools.v1",
)
"""A base, three fine-tuned models, an adapter of the base, and a fine-tuned model with two more tokens."""
State = Mapping[str, Tensor]
Expected = Callable[[str, State, Mapping[str, State]], Tensor]
"""A tensor's name, the base and all models in float64 -> the merged tensor."""


@dataclass(frozen=True)
class Form:
    """A file, and what becomes of it.

    Attributes:
        text: of the file.
        refused: a part of the message, for what is not done here; nothing for what runs.
        why: it is refused.
        expected: what each tensor is, where the definition is short.
        apart: how far the result may be from mergekit's, relative to the change; by the table of the docs.
            Nothing where random numbers, or the order of added tokens, differ.
    """

    text: str
    refused: str = ""
    why: str = ""
    expected: Expected | None = None
    apart: float | None = 1e-5


def save_family(folder: Path) -> None:
    """The models that the forms name."""
    for seed, name in enumerate((BASE, CHAT, MATH, CODE, WIDE)):
        model = _network(64)
        if name == WIDE:
            model.resize_token_embeddings(66, mean_resizing=False)
        if name != BASE:
            _fine_tune(model, seed)
        model.save_pretrained(folder / name)
        _tokenizer(66 if name == WIDE else 64, chat=name == CHAT).save_pretrained(folder / name)
    torch.manual_seed(9)
    settings = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(_network(64), settings).save_pretrained(str(folder / LORA))


def _network(tokens: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=tokens,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(settings)


@torch.no_grad()
def _fine_tune(model: LlamaForCausalLM, seed: int) -> None:
    """A step that all models have in common, in part."""
    common, own = (torch.Generator().manual_seed(number) for number in (100, seed))
    for tensor in model.parameters():
        noise = [torch.randn(tensor.shape, generator=generator) for generator in (common, own)]
        tensor.add_(noise[0] + noise[1], alpha=0.01)


def _tokenizer(tokens: int, *, chat: bool) -> PreTrainedTokenizerFast:
    held = Tokenizer(models.BPE({f"t{number}": number for number in range(tokens)}, []))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}" if chat else None
    return PreTrainedTokenizerFast(tokenizer_object=held, chat_template=template)  # type: ignore[no-untyped-call]


# What tensors are, by definition


def mean(**weights: float) -> Expected:
    """The weighted mean of models."""
    total = sum(weights.values())
    names = {"chat": CHAT, "math": MATH, "code": CODE, "base": BASE}
    return lambda name, _, held: sum(
        (weight / total * held[names[key]][name] for key, weight in weights.items()), torch.zeros(())
    )


def moved(**weights: float) -> Expected:
    """The base with task vectors."""
    names = {"chat": CHAT, "math": MATH, "code": CODE, "lora": LORA}
    return lambda name, base, held: (
        base[name]
        + sum(
            (weight * (held[names[key]][name] - base[name]) for key, weight in weights.items()),
            torch.zeros(()),
        )
    )


def stacked(*layers: tuple[str, int]) -> Expected:
    """Layers of models on top of one another; the rest of the first and the last."""

    def expected(name: str, _: State, held: Mapping[str, State]) -> Tensor:
        parts = name.split(".")
        if "layers" not in parts:
            return held[layers[0 if "embed" in name else -1][0]][name]
        model, number = layers[int(parts[2])]
        return held[model][".".join([*parts[:2], str(number), *parts[3:]])]

    return expected


def of(model: str, factor: float = 1.0) -> Expected:
    """One model as it is, or times a factor."""
    return lambda name, _, held: factor * held[model][name]


# The forms

_TWO = f"""\
models:
  - model: {CHAT}
    parameters: {{weight: 0.6}}
  - model: {MATH}
    parameters: {{weight: 0.4}}
"""
_SPARSE = f"""\
models:
  - model: {CHAT}
    parameters:
      density: 0.53
      weight: 0.4
  - model: {MATH}
    parameters:
      density: 0.55
      weight: 0.3
base_model: {BASE}
"""
_BARE = f"models:\n  - model: {CHAT}\n  - model: {MATH}\n"
_PAIR_OF_SLICES = f"""\
slices:
  - sources:
      - model: {CHAT}
        layer_range: [0, 4]
      - model: {MATH}
        layer_range: [0, 4]
"""
_CURVES = """\
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
"""

FORMS: dict[str, Form] = {
    # linear
    "a soup of equal parts": Form(
        f"merge_method: linear\n{_BARE}parameters:\n  weight: 1.0\n", expected=mean(chat=1, math=1)
    ),
    "a soup with shares": Form(f"merge_method: linear\n{_TWO}dtype: float32\n", expected=mean(chat=0.6, math=0.4)),
    "a sum that is not normalized": Form(
        f"merge_method: linear\n{_TWO}parameters:\n  normalize: false\n",
        expected=lambda name, _, held: 0.6 * held[CHAT][name] + 0.4 * held[MATH][name],
    ),
    "numbers as text": Form(
        f'merge_method: linear\nmodels:\n  - model: {CHAT}\n    parameters: {{weight: "0.6"}}\n'
        f"  - model: {MATH}\n    parameters: {{weight: '4e-1'}}\n",
        expected=mean(chat=0.6, math=0.4),
    ),
    "a soup with its base among the models": Form(
        f"merge_method: linear\nbase_model: {BASE}\nmodels:\n  - model: {BASE}\n    parameters: {{weight: 1}}\n"
        f"  - model: {CHAT}\n    parameters: {{weight: 3}}\n",
        expected=mean(base=1, chat=3),
    ),
    "a soup whose base is added": Form(
        f"merge_method: linear\nbase_model: {BASE}\n{_BARE}parameters: {{weight: 1}}\n",
        expected=mean(base=1, chat=1, math=1),
    ),
    "a soup by layers": Form(
        f"merge_method: linear\n{_PAIR_OF_SLICES}parameters:\n  weight: 0.5\n", expected=mean(chat=1, math=1)
    ),
    "shares by filters and a star": Form(
        f"merge_method: linear\nmodels:\n  - model: {CHAT}\n    parameters:\n      weight:\n        - filter: mlp\n"
        f"          value: 1\n        - filter: '*'\n          value: 3\n  - model: {MATH}\n    parameters: {{weight: 1}}\n",
        expected=lambda name, base, held: mean(chat=1 if "mlp" in name else 3, math=1)(name, base, held),
    ),
    "a truth value as a word": Form(
        f"merge_method: linear\n{_TWO}parameters: {{normalize: 'true'}}\n", expected=mean(chat=0.6, math=0.4)
    ),
    "models with ranges of layers": Form(
        f"merge_method: linear\nmodels:\n  - model: {CHAT}\n    layer_range: [0, 4]\n    parameters: {{weight: 1}}\n"
        f"  - model: {MATH}\n    layer_range: [0, 4]\n    parameters: {{weight: 1}}\n",
        expected=mean(chat=1, math=1),
    ),
    # slerp
    "slerp with curves over depth": Form(
        f"merge_method: slerp\nbase_model: {CHAT}\n{_PAIR_OF_SLICES}{_CURVES}dtype: float32\n"
    ),
    "slerp of whole models": Form(f"merge_method: slerp\nbase_model: {CHAT}\n{_BARE}{_CURVES}"),
    "slerp at one place": Form(f"merge_method: slerp\nbase_model: {CHAT}\n{_BARE}parameters: {{t: 0.5}}\n"),
    "slerp along a list": Form(
        f"merge_method: slerp\nbase_model: {CHAT}\n{_BARE}parameters:\n  t: [0.1, 0.3, 0.6, 0.3, 0.1]\n"
    ),
    "slerp with values for embeddings": Form(
        f"merge_method: slerp\nbase_model: {CHAT}\n{_PAIR_OF_SLICES}parameters:\n  t:\n    - filter: lm_head\n"
        "      value: [0.55]\n    - filter: embed_tokens\n      value: [0.7]\n    - filter: layernorm\n"
        "      value: [0.6, 0.4]\n    - value: [0.5]\n"
    ),
    "slerp with shares that do nothing": Form(
        f"merge_method: slerp\nbase_model: {CHAT}\n{_TWO}parameters: {{t: 0.3, normalize: true}}\n"
    ),
    "slerp whose base is not listed": Form(
        f"merge_method: slerp\nbase_model: {CHAT}\nmodels: [{{model: {MATH}}}]\nparameters: {{t: 0.4}}\n"
    ),
    "slerp from end to end": Form(
        f"merge_method: slerp\nbase_model: {CHAT}\n{_BARE}parameters: {{t: 1}}\n", expected=of(MATH)
    ),
    # Task arithmetic
    "task vectors added": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\n{_TWO}", expected=moved(chat=0.6, math=0.4)
    ),
    "a task vector taken away": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\nmodels:\n  - model: {CHAT}\n    parameters: {{weight: 1.0}}\n"
        f"  - model: {CODE}\n    parameters: {{weight: -0.5}}\n",
        expected=moved(chat=1, code=-0.5),
    ),
    "task vectors with lambda": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\n{_TWO}parameters: {{lambda: 0.5, normalize: true}}\n",
        expected=moved(chat=0.3, math=0.2),
    ),
    "weights by filters": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\nmodels:\n  - model: {CHAT}\n    parameters:\n      weight:\n"
        "        - filter: self_attn\n          value: 0.2\n        - filter: mlp\n          value: 0.8\n        - value: 0\n",
        expected=lambda name, base, held: moved(
            chat=0.2 if "self_attn" in name else 0.8 if "mlp" in name else 0
        )(name, base, held),
    ),
    "masks and rescaling that do nothing": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\n{_TWO}parameters: {{int8_mask: true, rescale: true}}\n",
        expected=moved(chat=0.6, math=0.4),
    ),
    "a parameter of all given to one": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\nmodels:\n  - model: {CHAT}\n"
        "    parameters: {weight: 0.5, normalize: true, int8_mask: true}\n",
        expected=moved(chat=0.5),
    ),
    "a density beside the parameters": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\nmodels:\n  - model: {CHAT}\n    density: 0.5\n"
        "    parameters: {weight: 0.5}\n",
        expected=moved(chat=0.5),
    ),
    # Trimmed and dropped
    "ties with gradients": Form(
        f"models:\n  - model: {CHAT}\n    parameters:\n      density: [1, 0.7, 0.1] # density gradient\n      weight: 1.0\n"
        f"  - model: {MATH}\n    parameters:\n      density: 0.5\n      weight: [0, 0.3, 0.7, 1] # weight gradient\n"
        f"  - model: {CODE}\n    parameters:\n      density: 0.33\n      weight:\n        - filter: mlp\n          value: 0.5\n"
        f"        - value: 0\nmerge_method: ties\nbase_model: {BASE}\nparameters:\n  normalize: true\n  int8_mask: true\n",
        apart=0.1,
    ),
    "ties with its base listed": Form(
        f"models:\n  - model: {BASE}\n    # nothing for the base\n  - model: {CHAT}\n    parameters: {{density: 0.5, weight: 0.5}}\n"
        f"  - model: {MATH}\n    parameters: {{density: 0.5, weight: 0.3}}\nmerge_method: ties\nbase_model: {BASE}\n"
        "parameters: {normalize: true}\ndtype: float32\n",
        apart=0.1,
    ),
    "ties of everything": Form(f"merge_method: ties\nbase_model: {BASE}\n{_TWO}"),
    "ties with settings at the top": Form(
        f"merge_method: ties\nbase_model: {BASE}\n{_TWO}normalize: true\nint8_mask: true\n"
    ),
    "ties by layers": Form(
        f"merge_method: ties\nbase_model: {BASE}\nslices:\n  - sources:\n      - {{model: {BASE}, layer_range: [0, 4]}}\n"
        f"      - {{model: {CHAT}, layer_range: [0, 4], parameters: {{weight: 1, density: 0.6}}}}\n"
        f"      - {{model: {MATH}, layer_range: [0, 4], parameters: {{weight: 0.5, density: 0.4}}}}\n",
        apart=0.1,
    ),
    "dare_ties": Form(f"merge_method: dare_ties\n{_SPARSE}parameters:\n  int8_mask: true\ndtype: bfloat16\n", apart=None),
    "dare_linear": Form(f"merge_method: dare_linear\n{_SPARSE}parameters: {{normalize: true}}\n", apart=None),
    "dare_ties with nothing for the base": Form(
        f"merge_method: dare_ties\n{_SPARSE}".replace("models:\n", f"models:\n  - model: {BASE}\n    parameters: {{weight: 0, density: 0}}\n"),
        apart=None,
    ),
    "dare_ties by layers with gradients": Form(
        f"merge_method: dare_ties\nbase_model: {BASE}\nslices:\n  - sources:\n      - {{model: {BASE}, layer_range: [0, 4]}}\n"
        f"      - model: {CHAT}\n        layer_range: [0, 4]\n        parameters:\n          density: [0.1, 0.5, 0.9]\n"
        "          weight: [0, 0.3, 0.7, 1]\n",
        apart=None,
    ),
    "a density from nothing": Form(
        f"merge_method: ties\nbase_model: {BASE}\nmodels:\n  - model: {CHAT}\n    parameters: {{weight: 1, density: [0, 0.25, 0.5, 1]}}\n",
        apart=0.1,
    ),
    "no density for some tensors": Form(
        f"merge_method: dare_linear\nbase_model: {BASE}\nmodels:\n  - model: {CHAT}\n    parameters:\n      weight: 0.5\n"
        "      density:\n        - filter: mlp\n          value: 0.0\n        - value: 1.0\n",
        expected=lambda name, base, held: moved(chat=0 if "mlp" in name else 0.5)(name, base, held),
    ),
    "dare_ties with slerped embeddings": Form(
        f"merge_method: dare_ties\n{_SPARSE}tokenizer_source: union\nparameters: {{embed_slerp: true}}\n", apart=None
    ),
    "breadcrumbs": Form(f"merge_method: breadcrumbs\n{_SPARSE}parameters: {{gamma: 0.02}}\n", apart=0.1),
    "breadcrumbs_ties": Form(
        f"merge_method: breadcrumbs_ties\n{_SPARSE}parameters:\n  lambda: 1.1\n  gamma: 0.01\n  normalize: true\n", apart=0.1
    ),
    "della": Form(
        f"merge_method: della\n{_SPARSE}parameters:\n  epsilon: 0.1\n  lambda: 1.0\n  int8_mask: true\n", apart=None
    ),
    "della_linear": Form(
        f"merge_method: della_linear\nbase_model: {BASE}\nmodels:\n  - model: {CHAT}\n"
        "    parameters: {weight: 0.5, density: 0.7, epsilon: 0.2}\nparameters: {lambda: 1.2, normalize: false}\n",
        apart=None,
    ),
    # Others
    "model_stock": Form(f"merge_method: model_stock\nbase_model: {BASE}\n{_BARE}"),
    "model_stock by rows": Form(f"merge_method: model_stock\nbase_model: {BASE}\n{_BARE}parameters: {{filter_wise: true}}\n", apart=0.1),
    "model_stock with shares that do nothing": Form(
        f"merge_method: model_stock\nbase_model: {BASE}\n{_TWO}dtype: float32\n"
    ),
    "sce": Form(f"merge_method: sce\nbase_model: {BASE}\n{_BARE}parameters:\n  select_topk: 0.5\n", apart=0.1),
    "sce with settings that do nothing": Form(
        f"merge_method: sce\nbase_model: {BASE}\n{_TWO}parameters: {{normalize: true, int8_mask: true, select_topk: 1.0}}\n",
        apart=0.1,
    ),
    "nuslerp": Form(f"merge_method: nuslerp\n{_TWO}"),
    "nuslerp of task vectors": Form(f"merge_method: nuslerp\nbase_model: {BASE}\n{_TWO}"),
    "nuslerp by columns": Form(
        f"merge_method: nuslerp\n{_TWO}parameters: {{nuslerp_flatten: false, nuslerp_row_wise: true}}\n"
    ),
    "multislerp": Form(f"merge_method: multislerp\n{_BARE}  - model: {CODE}\nparameters: {{weight: 1}}\n"),
    "multislerp of task vectors": Form(
        f"merge_method: multislerp\nbase_model: {BASE}\n{_TWO}parameters: {{normalize_weights: false, eps: 1e-8}}\n"
    ),
    "karcher": Form(f"merge_method: karcher\n{_BARE}  - model: {CODE}\nparameters:\n  max_iter: 20\n  tol: 1e-7\n", apart=0.1),
    "karcher without settings": Form(f"merge_method: karcher\n{_BARE}parameters: null\n", apart=0.1),
    "arcee_fusion": Form(f"merge_method: arcee_fusion\nbase_model: {BASE}\nmodels:\n  - model: {BASE}\n  - model: {CHAT}\n", apart=0.3),
    "nearswap": Form(
        f"merge_method: nearswap\nbase_model: {BASE}\nmodels:\n  - model: {CHAT}\nparameters:\n  t: 0.001\n"
    ),
    # passthrough
    "a tower of two models": Form(
        f"slices:\n  - sources:\n      - model: {CHAT}\n        layer_range: [0, 3]\n  - sources:\n      - model: {MATH}\n"
        "        layer_range: [1, 4]\nmerge_method: passthrough\ndtype: float32\n",
        expected=stacked((CHAT, 0), (CHAT, 1), (CHAT, 2), (MATH, 1), (MATH, 2), (MATH, 3)),
    ),
    "a model on itself": Form(
        f"merge_method: passthrough\nslices:\n- sources: [{{model: {CHAT}, layer_range: [0, 3]}}]\n"
        f"- sources: [{{model: {CHAT}, layer_range: [1, 3]}}]\n- sources: [{{model: {CHAT}, layer_range: [1, 4]}}]\n",
        expected=stacked(*[(CHAT, layer) for layer in (0, 1, 2, 1, 2, 1, 2, 3)]),
    ),
    "layers left out": Form(
        f"merge_method: passthrough\nslices:\n- sources: [{{model: {CHAT}, layer_range: [0, 2]}}]\n"
        f"- sources: [{{model: {CHAT}, layer_range: [3, 4]}}]\n",
        expected=stacked((CHAT, 0), (CHAT, 1), (CHAT, 3)),
    ),
    "new layers that do nothing yet": Form(
        f"merge_method: passthrough\nslices:\n- sources: [{{model: {CHAT}, layer_range: [0, 4]}}]\n- sources:\n"
        f"  - model: {CHAT}\n    layer_range: [3, 4]\n    parameters:\n      scale:\n      - {{filter: o_proj, value: 0.0}}\n"
        "      - {filter: down_proj, value: 0.0}\n      - {value: 1.0}\n",
        expected=lambda name, base, held: stacked(*[(CHAT, layer) for layer in (0, 1, 2, 3, 3)])(name, base, held)
        * (0 if ".4." in name and ("o_proj" in name or "down_proj" in name) else 1),
    ),
    "a model in another dtype": Form(f"merge_method: passthrough\nmodels:\n  - model: {CHAT}\ndtype: torch.bfloat16\n", expected=of(CHAT)),
    "a model times a number": Form(
        f"merge_method: passthrough\nmodels:\n  - model: {CHAT}\n    parameters: {{scale: 0.5}}\n", expected=of(CHAT, 0.5)
    ),
    "a tower with a base": Form(
        f"merge_method: passthrough\nbase_model: {CHAT}\nslices:\n- sources: [{{model: {CHAT}, layer_range: [0, 2]}}]\n"
        f"- sources: [{{model: {MATH}, layer_range: [2, 4]}}]\n",
        expected=stacked((CHAT, 0), (CHAT, 1), (MATH, 2), (MATH, 3)),
    ),
    # Adapters
    "an adapter alone": Form(
        f"base_model: {BASE}+{LORA}\nmerge_method: task_arithmetic\nparameters: {{normalize: false}}\nslices:\n- sources:\n"
        f"  - layer_range: [0, 4]\n    model: {BASE}+{LORA}\n    parameters: {{weight: 1.0}}\n",
        expected=of(LORA),
    ),
    "an adapter passed through": Form(
        f"merge_method: passthrough\nmodels:\n  - model: {BASE}+{LORA}\n", expected=of(LORA)
    ),
    "an adapter as a task vector": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\nmodels:\n  - model: {BASE}+{LORA}\n    parameters: {{weight: 0.5}}\n"
        f"  - model: {CHAT}\n    parameters: {{weight: 1}}\n",
        expected=moved(lora=0.5, chat=1),
    ),
    "an adapter on both": Form(
        f"merge_method: linear\nmodels:\n  - model: {BASE}+{LORA}\n    parameters: {{weight: 1}}\n"
        f"  - model: {CHAT}\n    parameters: {{weight: 1}}\n",
        expected=lambda name, _, held: (held[LORA][name] + held[CHAT][name]) / 2,
    ),
    # Places, dtypes, notation
    "what model cards show": Form(
        f"base_model: {BASE}\nmerge_method: task_arithmetic\nmodules:\n  default:\n    slices:\n    - sources:\n"
        f"      - layer_range: [0, 4]\n        model: {CHAT}\n        parameters: {{weight: 0.5}}\n"
        f"      - layer_range: [0, 4]\n        model: {BASE}\nparameters: {{normalize: 0.0, int8_mask: 1.0, lambda: 1.0}}\n",
        expected=moved(chat=0.5),
    ),
    "a module of whole models": Form(
        f"merge_method: linear\nmodules:\n  default:\n    models:\n    - {{model: {CHAT}}}\n    - {{model: {MATH}}}\n"
        "    parameters: {weight: 1}\n",
        expected=mean(chat=1, math=1),
    ),
    "models as mappings": Form(
        f"merge_method: linear\nmodels:\n- model: {{model: {{path: {CHAT}, revision: null}}, lora: null, override_architecture: null}}\n"
        f"  parameters: {{weight: 1}}\n- model: {{model: {MATH}}}\n  parameters: {{weight: 1}}\n",
        expected=mean(chat=1, math=1),
    ),
    "a base with an adapter as a mapping": Form(
        f"merge_method: passthrough\nmodels:\n- model: {{model: {{path: {BASE}}}, lora: {{path: {LORA}}}}}\n", expected=of(LORA)
    ),
    "a base for each slice": Form(
        f"merge_method: task_arithmetic\nslices:\n- base_model: {BASE}\n  sources:\n  - {{model: {BASE}, layer_range: [0, 4]}}\n"
        f"  - {{model: {CHAT}, layer_range: [0, 4], parameters: {{weight: 0.5}}}}\n",
        expected=moved(chat=0.5),
    ),
    "slices of the base alone between others": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\nslices:\n- sources:\n  - {{model: {BASE}, layer_range: [0, 2]}}\n"
        f"- sources:\n  - {{model: {BASE}, layer_range: [2, 4]}}\n  - {{model: {CHAT}, layer_range: [2, 4], parameters: {{weight: 1}}}}\n",
        expected=stacked((BASE, 0), (BASE, 1), (CHAT, 2), (CHAT, 3)),
        apart=1,
    ),
    "parameters of a slice": Form(
        f"merge_method: linear\nslices:\n- sources:\n  - {{model: {CHAT}, layer_range: [0, 4]}}\n"
        f"  - {{model: {MATH}, layer_range: [0, 4], parameters: {{weight: 3}}}}\n  parameters: {{weight: 1}}\n",
        expected=mean(chat=1, math=3),
    ),
    "a dtype for the result": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\n{_TWO}dtype: float32\nout_dtype: bfloat16\n",
        expected=moved(chat=0.6, math=0.4),
    ),
    "half precision": Form(
        f"merge_method: linear\n{_TWO}dtype: float16\n", expected=mean(chat=0.6, math=0.4), apart=0.05
    ),
    "options of the command in the file": Form(
        f"name: My-Merge-0.1B\ndescription: made for fun\nrandom_seed: 42\nallow_crimes: true\nmerge_method: linear\n{_TWO}",
        expected=mean(chat=0.6, math=0.4),
    ),
    "anchors and aliases": Form(
        f"x-share: &share {{weight: 0.5}}\nmerge_method: linear\nmodels:\n  - model: {CHAT}\n    parameters: *share\n"
        f"  - model: {MATH}\n    parameters: {{<<: *share}}\n",
        expected=mean(chat=1, math=1),
    ),
    "JSON": Form(
        f'{{"merge_method": "linear", "models": [{{"model": "{CHAT}"}}, {{"model": "{MATH}"}}], "parameters": {{"weight": 1}}}}',
        expected=mean(chat=1, math=1),
    ),
    "a folder with a revision": Form(
        f"merge_method: passthrough\nmodels:\n  - model: ./{CHAT}@main\n", expected=of(CHAT)
    ),
    "a document that begins with dashes": Form(
        f"---\n# a merge\nmerge_method: linear # averaged\n{_BARE}parameters: {{weight: 1}}\n...\n", expected=mean(chat=1, math=1)
    ),
    # Tokenizers and templates
    "the tokenizer of the base": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\n{_TWO}tokenizer_source: base\n", expected=moved(chat=0.6, math=0.4)
    ),
    "all tokens": Form(
        f"merge_method: linear\nbase_model: {BASE}\nmodels:\n  - {{model: {BASE}, parameters: {{weight: 1}}}}\n"
        f"  - {{model: {WIDE}, parameters: {{weight: 1}}}}\ntokenizer_source: union\n",
        apart=None,
    ),
    "all tokens without a base": Form(
        f"merge_method: linear\n{_BARE}parameters: {{weight: 1}}\ntokenizer_source: union\n", expected=mean(chat=1, math=1)
    ),
    "the tokenizer of a model": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\nmodels:\n  - {{model: {WIDE}, parameters: {{weight: 1}}}}\n"
        f"tokenizer_source: {WIDE}\n"
    ),
    "the tokenizer of the base by its name": Form(
        f"merge_method: task_arithmetic\nbase_model: {BASE}\n{_TWO}tokenizer_source: {BASE}\n", expected=moved(chat=0.6, math=0.4)
    ),
    "a tokenizer with rows by hand": Form(
        f"merge_method: linear\nbase_model: {BASE}\nmodels:\n  - {{model: {BASE}, parameters: {{weight: 1}}}}\n"
        f"  - {{model: {WIDE}, parameters: {{weight: 1}}}}\ntokenizer:\n  source: union\n  tokens:\n    t64:\n"
        f"      source: {WIDE}\n    t65:\n      source: {{kind: model_token, model: {BASE}, token: t3}}\n      force: true\n",
        apart=None,
    ),
    "a tokenizer with padding": Form(
        f"merge_method: linear\nbase_model: {CHAT}\n{_TWO}tokenizer:\n  source: base\n  pad_to_multiple_of: 32\n",
        expected=mean(chat=0.6, math=0.4),
    ),
    "the template that most have": Form(
        f"merge_method: linear\n{_TWO}chat_template: auto\n", expected=mean(chat=0.6, math=0.4)
    ),
    "a template by name": Form(
        f"merge_method: linear\n{_TWO}chat_template: chatml\n", expected=mean(chat=0.6, math=0.4)
    ),
    "a template as text": Form(
        f'merge_method: linear\n{_TWO}chat_template: "{{% for m in messages %}}<|{{{{ m.role }}}}|>{{{{ m.content }}}}{{% endfor %}}"\n',
        expected=mean(chat=0.6, math=0.4),
    ),
    # Several documents
    "two documents": Form(
        f"name: soup\nmerge_method: linear\n{_BARE}parameters: {{weight: 1}}\n---\nmerge_method: task_arithmetic\n"
        f"base_model: {BASE}\nmodels:\n  - model: soup\n    parameters: {{weight: 0.5}}\n",
        expected=moved(chat=0.25, math=0.25),
    ),
    "three documents in a chain": Form(
        f"name: tower\nmerge_method: passthrough\nslices:\n- sources: [{{model: {CHAT}, layer_range: [0, 3]}}]\n"
        f"- sources: [{{model: {CHAT}, layer_range: [2, 4]}}]\n---\nname: other\nmerge_method: passthrough\nslices:\n"
        f"- sources: [{{model: {MATH}, layer_range: [0, 3]}}]\n- sources: [{{model: {MATH}, layer_range: [2, 4]}}]\n---\n"
        "merge_method: slerp\nbase_model: tower\nmodels: [{model: other}]\nparameters: {t: 1}\n",
        expected=stacked(*[(MATH, layer) for layer in (0, 1, 2, 2, 3)]),
    ),
    "an adapter on another document": Form(
        f"name: copy-v1.0\nmerge_method: passthrough\nmodels:\n  - model: {BASE}\n---\nmerge_method: linear\n"
        f"models:\n  - model: copy-v1.0+{LORA}\n    parameters: {{weight: 1}}\n  - model: {CHAT}\n    parameters: {{weight: 3}}\n",
        expected=lambda name, _, held: (held[LORA][name] + 3 * held[CHAT][name]) / 4,
    ),
    # What is not done here
    "ram": Form(
        f"merge_method: ram\nbase_model: {BASE}\n{_BARE}",
        refused="a method of mergekit that taskvec lacks",
        why="the method is not here",
    ),
    "ramplus_tl": Form(
        f"merge_method: ramplus_tl\nbase_model: {BASE}\n{_BARE}parameters: {{r: 0.1, alpha: 0.2}}\n",
        refused="a method of mergekit that taskvec lacks",
        why="the method is not here",
    ),
}  # fmt: skip
