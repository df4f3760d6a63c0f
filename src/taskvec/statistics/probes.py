"""Random directions of a model's outputs: what is differentiated where outputs have no labels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import xxhash
from torch import Tensor, nn
from torch.nn.functional import normalize

from taskvec.models.backbone import Backbone, evaluating, on_device
from taskvec.progress import Watch
from taskvec.tangent.ntk.gradients import SampleGradients
from taskvec.tangent.ntk.samples import Samples, selected
from taskvec.tangent.ntk.terms import Outer, Term
from taskvec.tasks.loaders import Batches
from taskvec.tasks.objective import Batch


@dataclass(frozen=True)
class Probing:
    """How outputs are probed.

    Args:
        probes: directions of each example, standard normal.
        normalize: probe outputs of length 1, in place of those that the model gives.
        seed: of the directions; those of an example depend on it and on the example's place alone.
    """

    probes: int = 1
    normalize: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Piece:
    """Gradients of some samples.

    Args:
        features: by checkpoint name, what the uses of a parameter contribute.
        n: samples. classes: directions of each.
    """

    features: Mapping[str, list[Term]]
    n: int
    classes: int

    @cached_property
    def reaching(self) -> dict[int, Tensor]:
        """By the number of tokens S of a layer, those (n, S) that outputs depend on through one such layer:
        no padding, nor what a causal model reads behind the row that is probed."""
        found: dict[int, Tensor] = {}
        for term in (term for uses in self.features.values() for term in uses if isinstance(term, Outer)):
            alive = torch.stack([(slope != 0).any(-1) for slope in term.slopes]).any(0)
            found[alive.shape[1]] = alive | found.get(alive.shape[1], torch.zeros_like(alive))
        return found


class _Probed(nn.Module):
    """A backbone whose outputs are probed: (n, probes)."""

    def __init__(self, backbone: Backbone, normalized: bool) -> None:
        super().__init__()
        self.backbone, self._normalized = backbone, normalized

    def forward(self, probe: Tensor, row: Tensor | None = None, **batch: Tensor) -> Tensor:
        """Inner products of outputs and probes (n, probes, d).

        Args:
            row: of a language model, the position (n,) whose logits are probed.
        """
        if row is not None:
            length = batch.get("decoder_input_ids", batch["input_ids"]).shape[1]
            batch["scored"] = torch.arange(len(row), device=row.device) * length + row
        outputs = self.backbone(**batch)
        outputs = normalize(outputs, dim=-1) if self._normalized else outputs
        return (outputs.unsqueeze(1) * probe).sum(-1)


class Probes:
    """The per-sample gradients of probed outputs, by checkpoint name.

    Args:
        names: of the parameters; those of a language model's vocabulary are left out.
        memory: bytes that the gradients of one pass may take.
    """

    def __init__(self, backbone: Backbone, names: list[str], how: Probing, memory: float) -> None:
        self._model, self._how, self._memory = _Probed(backbone, how.normalize), how, memory
        self._backbone, vocabulary = backbone, _vocabulary(backbone)
        self.names = [name for name in names if name not in vocabulary]
        inside = {stored: name for name, stored in backbone.names.items()}
        self._stored = {f"backbone.network.{inside[name]}": name for name in self.names}

    def passes(self, inputs: Batches, watch: Watch, label: str) -> Iterator[Piece]:
        """The gradients of some samples after the other."""
        parameters = selected(self._model, list(self._stored))
        done, total = 0, count_examples(inputs)
        with torch.no_grad(), evaluating(self._model):
            # Texts: the longest come last.
            gradients = SampleGradients(self._model, parameters, self._samples(inputs[-1]), trim=False)
            needed = gradients.feature_bytes + 2 * gradients.graph_bytes
            step = max(1, int(self._memory / 2 / max(1, needed)))
            for batch in inputs:
                samples = self._samples(batch)
                for start in range(0, len(samples), step):
                    some = samples[start : start + step]
                    found = gradients.features(some)
                    named = {self._stored[name]: terms for name, terms in found.items()}
                    yield Piece(named, len(some), self._how.probes)
                done += len(samples)
                watch(label, done, total)

    def _samples(self, batch: Batch) -> Samples:
        """Inputs with the probe of each, and of language models the row that is probed."""
        read = {name: value for name, value in batch.inputs.items() if name != "scored"}
        examples, counts = torch.unique_consecutive(batch.index, return_counts=True)
        drawn = [
            self._draw(place, count) for place, count in zip(examples.tolist(), counts.tolist(), strict=True)
        ]
        given = {**read, "probe": torch.stack([probe for probe, _ in drawn])}
        if (scored := batch.inputs.get("scored")) is not None:
            length = batch.inputs.get("decoder_input_ids", batch.inputs["input_ids"]).shape[1]
            firsts = counts.cumsum(0) - counts
            chosen = firsts + torch.tensor([at for _, at in drawn])
            given["row"] = scored[chosen] % length
        device = self._backbone.device
        like = next(self._backbone.network.parameters())
        given["probe"] = given["probe"].to(torch.promote_types(like.dtype, torch.float32))
        return Samples.of(on_device(given, device), "the inputs")

    def _draw(self, place: int, rows: int) -> tuple[Tensor, int]:
        """Directions (probes, d) of the example at a place, and one of its rows."""
        digest = xxhash.xxh3_64_intdigest(f"{self._how.seed}/{place}".encode())
        generator = torch.Generator().manual_seed(digest >> 1)
        row = int(torch.randint(rows, (), generator=generator))
        return torch.randn(self._how.probes, self._backbone.dim, generator=generator), row


def count_examples(inputs: Batches) -> int:
    """How many examples some batches hold."""
    return len(set(inputs.targets()[1].tolist()))


def _vocabulary(backbone: Backbone) -> set[str]:
    """Parameters of a language model that have a row for each token, too large for what is measured here."""
    if backbone.outputs != "tokens":
        return set()
    return {name for name, value in backbone.encoder_parameters().items() if backbone.dim in value.shape}
