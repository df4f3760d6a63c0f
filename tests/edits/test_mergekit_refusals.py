"""mergekit's YAML: what does not fit is refused in one line, and nothing is written."""
# ruff: noqa: E501  # the table of bad input reads best with a case on a line

from pathlib import Path

import pytest
import torch

from edits.mergekit_models import STATES, merge
from taskvec.cli import main
from taskvec.edits.opening import open_recipe
from taskvec.errors import InputError
from taskvec.weights import save_weights

WHOLE = (
    "base_model: base\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"
)
REFUSED = {
    "unknown method": ("merge_method: tise\n" + WHOLE, "did you mean 'ties'"),
    "method in capitals": ("merge_method: DARE_TIES\n" + WHOLE, "did you mean 'dare_ties'"),
    "unknown key": ("merge_method: ties\nparamaters: {density: 0.5}\n" + WHOLE, "unknown key 'paramaters'; did you mean 'parameters'"),
    "missing letter": ("merge_metod: ties\nmerge_method: ties\n" + WHOLE, "unknown key 'merge_metod'; did you mean 'merge_method'"),
    "hyphen": ("merge_method: ties\nbase-model: a\n" + WHOLE, "unknown key 'base-model'; did you mean 'base_model'"),
    "capitals": ("merge_method: ties\nDtype: float16\n" + WHOLE, "unknown key 'Dtype'; did you mean 'dtype'"),
    "singular": ("merge_method: ties\nparameter: {density: 0.5}\n" + WHOLE, "unknown key 'parameter'; did you mean 'parameters'"),
    "unknown parameter": ("merge_method: ties\nparameters: {lamda: 5}\n" + WHOLE, "unknown parameter 'lamda' of 'ties'; did you mean 'lambda'"),
    "misspelt parameter of another method": ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.5, wieght: 0.5}", "unknown parameter 'wieght' of 'slerp'; did you mean 'weight'"),
    "misspelt parameter of the base": ("merge_method: ties\nbase_model: base\nmodels: [{model: base, parameters: {desnity: 1}}, {model: a}]\nparameters: {weight: 1}", "unknown parameter 'desnity' of 'ties'; did you mean 'density'"),
    "misspelt key of a model": ("merge_method: ties\nmodels: [{model: a, paramters: {weight: 1}}]", "unknown key 'paramters' in 'models.0'"),
    "misspelt key of a source": ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_rnage: [0, 1]}]}]", "unknown key 'layer_rnage'"),
    "method that is lacking": ("merge_method: ram\n" + WHOLE, "a method of mergekit that taskvec lacks"),
    "model of a misspelt mapping": ("merge_method: ties\nmodels: [{model: {model: {pth: a}}}]", "unknown key 'pth'; did you mean 'path'"),
    "model of an empty mapping": ("merge_method: ties\nmodels: [{model: {lora: a}}]", "a mapping without the path of a model"),
    "missing parameter": ("merge_method: ties\nbase_model: base\nmodels: [{model: a}]", "parameter 'weight' is missing for a"),
    "missing t": ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]", "parameter 't' is missing"),
    "nan": ("merge_method: ties\nbase_model: base\nmodels: [{model: a, parameters: {weight: .nan}}]", "models[0].parameters.weight: nan, expected a number"),
    "density 0": ("merge_method: ties\nparameters: {density: 0}\n" + WHOLE, "density: 0, expected a number above 0 and up to 1"),
    "density of percent": ("merge_method: ties\nparameters: {density: 20}\n" + WHOLE, "density: 20, expected a number above 0"),
    "a word": ("merge_method: ties\nparameters: {density: half}\n" + WHOLE, "density: 'half', expected a number"),
    "a truth value for a number": ("merge_method: ties\nparameters: {density: true}\n" + WHOLE, "density: True, expected a number"),
    "a number for a truth value": ("merge_method: ties\nparameters: {normalize: 0.5}\n" + WHOLE, "normalize: 0.5, expected true or false"),
    "empty gradient": ("merge_method: ties\nparameters: {density: []}\n" + WHOLE, "an empty list"),
    "filter without value": ("merge_method: ties\nparameters: {density: [{filter: mlp}]}\n" + WHOLE, "expected a mapping with value"),
    "filter with a typo": ("merge_method: ties\nparameters: {density: [{fliter: mlp, value: 1}]}\n" + WHOLE, "unknown key 'fliter'; did you mean 'filter'"),
    "epsilon too wide": ("merge_method: della\nparameters: {density: 0.1, epsilon: 0.3}\n" + WHOLE, "epsilon"),
    "weights that cancel": ("merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: -1}}]", "add up to 0"),
    "same model twice": ("merge_method: linear\nmodels: [{model: a}, {model: ./a}]\nparameters: {weight: 0.5}", "given twice"),
    "no base": ("merge_method: ties\nmodels: [{model: a, parameters: {weight: 1}}]", "base_model is missing"),
    "base alone": ("merge_method: ties\nbase_model: a\nmodels: [{model: a}]\nparameters: {weight: 1}", "0 models beside the base, expected at least 1"),
    "three for slerp": ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {t: 0.5}", "3 models, expected 2"),
    "two for passthrough": ("merge_method: passthrough\nmodels: [{model: a}, {model: b}]", "2 models, expected 1"),
    "one for model_stock": ("merge_method: model_stock\nbase_model: base\nmodels: [{model: a}]", "1 models beside the base, expected at least 2"),
    "both forms": ("merge_method: linear\nmodels: [{model: a}]\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]", "both models and slices"),
    "neither form": ("merge_method: linear", "neither models and slices"),
    "modules": ("merge_method: linear\nmodules: {text: {models: [{model: a}]}}", "modules: only default is supported"),
    "modules and models": ("merge_method: ties\nmodules: {default: {models: [{model: a}]}}\n" + WHOLE, "modules beside models"),
    "empty module": ("merge_method: linear\nmodules: {default: {}}", "neither models and slices"),
    "tokens of no model": ("merge_method: ties\ntokenizer_source: ./nowhere\n" + WHOLE, "tokenizer_source: ./nowhere: no such file or folder; known: base, union"),
    "misspelt tokens": ("merge_method: ties\ntokenizer_source: Unoin\n" + WHOLE, "tokenizer_source: Unoin: no such file or folder; did you mean 'union'"),
    "tokenizer of no model": ("merge_method: ties\ntokenizer: {source: ./nowhere}\n" + WHOLE, "tokenizer.source: ./nowhere: no such file or folder"),
    "row of no kind": ("merge_method: ties\ntokenizer: {tokens: {x: {source: {kind: one}}}}\n" + WHOLE, "tokenizer.tokens.x.source: unknown kind, expected model_token or zero"),
    "row of two tokens": ("merge_method: ties\ntokenizer: {tokens: {x: {source: {kind: model_token, model: a, token: y, token_id: 1}}}}\n" + WHOLE, "both token and token_id, expected one of them"),
    "row of no token": ("merge_method: ties\ntokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}\n" + WHOLE, "neither token and token_id, expected one of them"),
    "row of no model": ("merge_method: ties\ntokenizer: {source: base, tokens: {x: {source: ./nowhere}}}\n" + WHOLE, "tokenizer.tokens.x.source: ./nowhere: no such file"),
    "row that is not merged": ("merge_method: ties\ntokenizer: {source: base, tokens: {x: {source: c}}}\n" + WHOLE, "'x'"),
    "nothing to force": ("merge_method: ties\ntokenizer: {tokens: {x: {force: true}}}\n" + WHOLE, "force without a source"),
    "key of a row": ("merge_method: ties\ntokenizer: {tokens: {x: {sorce: a}}}\n" + WHOLE, "did you mean 'source'"),
    "padding to nothing": ("merge_method: ties\ntokenizer: {pad_to_multiple_of: 0}\n" + WHOLE, "tokenizer.pad_to_multiple_of"),
    "two tokenizers": ("merge_method: ties\ntokenizer_source: base\ntokenizer: {source: base}\n" + WHOLE, "both tokenizer_source and tokenizer"),
    "chat template": ("merge_method: ties\nchat_template: vicuna\n" + WHOLE, "no template of that name, expected auto, one of alpaca, chatml"),
    "dtype in capitals": ("merge_method: ties\ndtype: BFloat16\n" + WHOLE, "did you mean 'bfloat16'"),
    "dtype": ("merge_method: ties\ndtype: bf16\n" + WHOLE, "did you mean 'bfloat16'"),
    "adapter": ("merge_method: linear\nmodels: [{model: a+./lora}]\nparameters: {weight: 1}", "models[0].model: ./lora: no such file or folder"),
    "two adapters": ("merge_method: linear\nmodels: [{model: a+b+c}]\nparameters: {weight: 1}", "more than one +"),
    "no such model": ("merge_method: linear\nmodels: [{model: ./nowhere}]\nparameters: {weight: 1}", "models[0].model: ./nowhere: no such file or folder"),
    "missing tensor": ("merge_method: linear\nmodels: [{model: a}, {model: headless}]\nparameters: {weight: 1}", "headless lacks 'lm_head.weight', expected it as in a"),
    "layers beyond": ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [2, 5]}]}]", "expected layers up to 4"),
    "layers backwards": ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [2, 2]}]}]", "0 <= first < end"),
    "uneven slice": ("merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 1]}]}]\nparameters: {weight: 1}", "sources of 2, 1 layers"),
    "base not in the slice": ("merge_method: ties\nbase_model: base\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]\nparameters: {weight: 1}", "the base model 'base' is not among the sources"),
    "base that is nowhere": ("merge_method: ties\nbase_model: bsae\nmodels: [{model: a}]\nparameters: {weight: 1}", "merge.yaml: base_model: bsae: no such file or folder"),
    "slice without sources": ("merge_method: passthrough\nslices: [{model: a, layer_range: [0, 2]}]", "slices.0: a model outside of sources, expected sources: [{model: …, layer_range: …}]"),
    "sources as a mapping": ("merge_method: passthrough\nslices: [{sources: {model: a, layer_range: [0, 2]}}]", "slices.0.sources: expected a list"),
    "models as a mapping": ("merge_method: linear\nmodels: {a: {weight: 1}, b: {weight: 1}}", "models: expected a list"),
    "parameters as a list": ("merge_method: linear\nmodels: [{model: a, parameters: [{weight: 1}]}]", "models.0.parameters: expected a mapping (found [{'weight': 1}])"),
    "layers as text": ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: 0-2}]}]", "layer_range: expected [first, end] with 0 <= first < end (found '0-2')"),
    "one layer": ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [2]}]}]", "layer_range: expected [first, end]"),
    "tokenizer as text": ("merge_method: ties\ntokenizer: union\n" + WHOLE, "tokenizer: expected a mapping; write tokenizer_source: union"),
    "rows as a list": ("merge_method: ties\ntokenizer: {tokens: [x]}\n" + WHOLE, "tokenizer.tokens: expected a mapping (found ['x'])"),
    "row as text": ("merge_method: ties\ntokenizer: {tokens: {x: a}}\n" + WHOLE, "tokenizer.tokens.x: expected a mapping (found 'a')"),
    "not a mapping": ("merge_method: ties\nmodels: a", "models"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(here: Path, case: str) -> None:
    text, said = REFUSED[case]
    with pytest.raises(InputError) as caught:
        merge(text)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert message.startswith("merge.yaml")


def test_shapes_that_differ_are_refused(here: Path, tmp_path: Path) -> None:
    wide = {**STATES["b"], "lm_head.weight": torch.zeros(13, 6)}
    save_weights(wide, tmp_path / "wide")
    with pytest.raises(InputError, match=r"'lm_head\.weight' has shape"):
        merge(
            f"{{merge_method: linear, models: [{{model: a}}, {{model: '{tmp_path}/wide'}}], parameters: {{weight: 1}}}}"
        )


def test_the_command_ends_with_code_2_and_writes_nothing(here: Path, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(REFUSED["unknown key"][0])
    with pytest.raises(SystemExit) as ended:
        main(["merge", str(tmp_path / "m.yaml"), "-o", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "said"),
    [("mergemethod", "'mergemethod'"), ("merge-method", "'merge-method'"), ("merge_metod", "'merge_metod'")],
)
def test_a_misspelt_method_is_named(here: Path, tmp_path: Path, key: str, said: str) -> None:
    (tmp_path / "m.yaml").write_text(f"{key}: ties\n{WHOLE}")
    with pytest.raises(InputError, match=f"merge_method is missing, expected one; is {said} meant"):
        open_recipe(tmp_path / "m.yaml")
