"""Forms that a task vector can be stored in to take fewer bytes."""

from taskvec.registry import Registry
from taskvec.vectors.stored.compact.form import Form

FORMS: Registry[type[Form]] = Registry(
    "form",
    {
        "bf16": "taskvec.vectors.stored.compact.quantized:Rounded",
        "sparse": "taskvec.vectors.stored.compact.sparse:Sparse",
        "low-rank": "taskvec.vectors.stored.compact.low_rank:LowRank",
        "int8": "taskvec.vectors.stored.compact.quantized:Int8",
        "1-bit": "taskvec.vectors.stored.compact.quantized:OneBit",
    },
)

__all__ = ["FORMS", "Form"]
