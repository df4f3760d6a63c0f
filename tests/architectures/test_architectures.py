"""Families of models, built tiny: edits are exact and load, adapters go out and come in, slices load."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

SAMPLE = (
    *("bert", "clip", "deepseek_v3", "dinov2", "gemma2", "gemma3", "gpt2", "gpt_oss", "jamba", "llama"),
    *("llama4_text", "llava", "mamba", "mixtral", "mllama", "modernbert", "phi3", "qwen2_moe", "qwen2_vl"),
    *("qwen3_moe", "qwen3_next", "segformer", "t5", "vit", "wav2vec2", "whisper"),
)
"""What every run of the tests looks at: one of each kind of names, layers and adapters."""

ALL = "TASKVEC_ARCHITECTURES"
"""The environment variable with the folder for the records of all families (``make architectures``)."""


def chosen() -> list[str]:
    if ALL not in os.environ:  # so that collecting tests need not wait for transformers
        return list(SAMPLE)
    from architectures.families import families

    return list(families())


def leave_out(name: str, reason: str) -> NoReturn:
    """Skip a family, which none of the sample may be."""
    assert name not in SAMPLE, reason
    pytest.skip(reason)


@pytest.mark.parametrize("name", chosen())
def test_a_family_is_edited_adapted_and_sliced(name: str, tmp_path: Path) -> None:
    from architectures.checks import Idle, check
    from architectures.families import LARGEST, count_parameters, families
    from architectures.page import keep

    family = families()[name]
    try:
        size = count_parameters(family)
    except Exception as error:
        leave_out(name, f"cannot be built tiny ({type(error).__name__})")
    if size > LARGEST:
        leave_out(name, f"{size:,} parameters at least")
    try:
        record = check(family, tmp_path)
    except Idle as reason:
        leave_out(name, str(reason))
    if ALL in os.environ:
        keep(record, Path(os.environ[ALL]))
    assert not record.failures
