"""One optimizer step's forward and backward passes, with losses divided by global counts.

The loss of a step is ``sum over terms of weight * sum / count`` where sum and count run over all micro-batches of all
processes. A term's count is known only when all of them have been counted, but a micro-batch's graph must be released
before the next one is run. So with one micro-batch the counts are exchanged between forward and backward pass, and with
several a pass without gradients (or the task's ``count_terms``) counts first. Scaling finished gradients instead would
be exact for a single term only: terms with different counts have already been added up in them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diptych.objectives.loss_term import LossTerm, Objective
from diptych.train.distributed import Processes, gradient_sync

ANCHOR = "anchor"
"""Name of the term that only keeps parameters in the graph."""


class StepModule(nn.Module):
    """The model and the objectives of a stage as one module, so that DDP and FSDP2 see a single forward pass.

    An objective that stands under several names runs once.

    Attributes:
        reaches_all: adds a term ``ANCHOR`` of value 0 that every trained parameter has a part in. FSDP2 needs all
            processes to have gradients for the same parameters.
    """

    def __init__(self, model: nn.Module, objectives: Mapping[str, Objective], reaches_all: bool = False) -> None:
        super().__init__()
        self.model = model
        self.objectives = dict(objectives)
        self.reaches_all = reaches_all

    def forward(self, batch: Any, seed: int) -> dict[str, tuple[Tensor | None, ...]]:
        """The fields of the loss terms that belong to the names the objectives stand under; others are left out.

        Tuples, because the wrappers look for tensors in tuples and dicts only.
        """
        terms: dict[str, LossTerm] = {}
        done: list[Objective] = []
        for objective in self.objectives.values():
            if objective in done:
                continue
            generator = torch.Generator().manual_seed((seed + len(done)) % 2**63)
            found = objective(self.model, batch, generator)
            terms.update({name: term for name, term in found.items() if objective_of(name) in self.objectives})
            done.append(objective)
        result: dict[str, tuple[Tensor | None, ...]] = {
            name: (term.sum, term.count, term.values, term.levels) for name, term in terms.items()
        }
        if self.reaches_all:
            firsts = [parameter.flatten()[0].float() for parameter in self.parameters() if parameter.requires_grad]
            result[ANCHOR] = (0.0 * torch.stack(firsts).sum(), torch.zeros_like(firsts[0]), None, None)
        return result


def objective_of(term: str) -> str:
    """The objective whose weight a loss term has: ``flow`` of ``flow`` and of ``flow/pixels``."""
    return term.split("/", 1)[0]


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind, besides the gradients.

    Attributes:
        loss: this process's share of the loss; the shares of all processes sum to the loss.
        terms: every loss term of every micro-batch of this process, detached.
        num_stops: processes that were asked to stop; the same number everywhere.
    """

    loss: Tensor
    terms: list[dict[str, LossTerm]]
    num_stops: Tensor


@dataclass
class Step:
    """Runs the passes of optimizer steps.

    Attributes:
        module: the ``StepModule``, wrapped for several processes or not.
        weights: of the objectives.
        precision: dtype of autocast; float32 turns it off.
        count_terms: see ``TrainingTask``.
    """

    module: nn.Module
    weights: Mapping[str, float]
    processes: Processes
    precision: torch.dtype = torch.float32
    count_terms: Callable[[Any], Mapping[str, float]] | None = None
    _names: list[str] = field(default_factory=list)

    def run(self, batches: Sequence[Any], seeds: Sequence[int], wants_stop: bool = False) -> StepResult:
        """Leaves the gradient of the global loss in the parameters.

        Args:
            batches: the micro-batches of this process, on its device; at least one.
            seeds: of each micro-batch, for generators and torch's global ones.
        """
        while True:
            result, num_unknown = self._attempt(batches, seeds, wants_stop)
            if self.processes.count == 1 or not num_unknown.item():
                return result
            # A process has met a term that the others do not know yet: agree on the names and do the step again.
            self._names = sorted(set().union(*self.processes.gather(self._names)))
            self.module.zero_grad(set_to_none=True)

    def evaluate(self, batch: Any, seed: int) -> dict[str, LossTerm]:
        """The loss terms of one micro-batch, as the step computes them."""
        return {name: term for name, term in self._forward(batch, seed).items() if name != ANCHOR}

    def _forward(self, batch: Any, seed: int) -> dict[str, LossTerm]:
        self._seed_globally(seed)
        with self._autocast():
            return {name: LossTerm(*fields) for name, fields in self.module(batch, seed).items()}

    def _attempt(self, batches: Sequence[Any], seeds: Sequence[int], wants_stop: bool) -> tuple[StepResult, Tensor]:
        device = self.processes.device
        done: list[dict[str, LossTerm]] = []
        loss = torch.zeros((), device=device)
        flags = torch.zeros(2, device=device)
        counts: dict[str, Tensor] | None = None
        if len(batches) > 1 or self.processes.max_micro_batches > 1:
            counts, flags = self._exchange(self._count(batches, seeds), wants_stop)
        for index, (batch, seed) in enumerate(zip(batches, seeds, strict=True)):
            with gradient_sync(self.module, index == len(batches) - 1):
                terms = self._forward(batch, seed)
                anchor = terms.pop(ANCHOR, None)
                if counts is None:
                    counts, flags = self._exchange({name: term.count for name, term in terms.items()}, wants_stop)
                share = self._weighted(terms, counts)
                if anchor is not None:
                    share = share + anchor.sum
                self._backward(share)
            loss = loss + share.detach()
            done.append({name: _detach(term) for name, term in terms.items()})
        return StepResult(loss=loss, terms=done, num_stops=flags[1]), flags[0]

    def _weighted(self, terms: Mapping[str, LossTerm], counts: Mapping[str, Tensor]) -> Tensor:
        """This micro-batch's share of the global loss."""
        total = torch.zeros((), device=self.processes.device)
        for name, term in terms.items():
            count = counts.get(name, term.count)  # a name that is still unknown to the others: the step is done again
            # 0 where nothing is counted anywhere; the term stays in the graph, where DDP expects it.
            factor = torch.where(count > 0, self.weights[objective_of(name)] / count.clamp(min=1e-12), 0.0)
            total = total + term.sum * factor.to(total.device)
        return total

    def _backward(self, share: Tensor) -> None:
        if not share.requires_grad:
            if self.processes.count == 1:
                return
            # This process has nothing to learn from, but the others wait for it in the backward pass.
            first = next(parameter for parameter in self.module.parameters() if parameter.requires_grad)
            share = share + 0.0 * first.flatten()[0]
        (share * self.processes.count).backward()  # DDP and FSDP2 average

    def _count(self, batches: Sequence[Any], seeds: Sequence[int]) -> dict[str, Tensor]:
        """The counts of all terms over the micro-batches of this process."""
        totals: dict[str, Tensor] = {}
        for batch, seed in zip(batches, seeds, strict=True):
            for name, count in self._count_one(batch, seed).items():
                totals[name] = totals.get(name, torch.zeros_like(count)) + count
        return totals

    def _count_one(self, batch: Any, seed: int) -> dict[str, Tensor]:
        if self.count_terms is None:
            with torch.no_grad():
                return {name: term.count for name, term in self.evaluate(batch, seed).items()}
        device = self.processes.device
        return {
            name: torch.as_tensor(value, dtype=torch.float32, device=device)
            for name, value in self.count_terms(batch).items()
            if objective_of(name) in self.weights
        }

    def _exchange(self, counts: Mapping[str, Tensor], wants_stop: bool) -> tuple[dict[str, Tensor], Tensor]:
        """Counts over all processes; and [processes with a name the others may not know, processes asked to stop]."""
        device = self.processes.device
        if self.processes.count == 1:
            flags = torch.tensor([0.0, float(wants_stop)])  # stays on the CPU: reading it waits for nothing
            return {name: count.detach().float() for name, count in counts.items()}, flags
        unknown = sorted(set(counts) - set(self._names))
        own = [counts[name].detach().float().to(device) if name in counts else torch.zeros((), device=device)
               for name in self._names]  # fmt: skip
        vector = torch.stack([*own, *torch.tensor([float(bool(unknown)), float(wants_stop)], device=device)])
        self.processes.sum(vector)
        known = dict(zip(self._names, vector[:-2], strict=True))
        self._names += unknown
        return known, vector[-2:]

    def _seed_globally(self, seed: int) -> None:
        """Dropout and the like draw from torch's global generators: the same at every attempt, other on every rank."""
        seed = (seed + 7919 * (self.processes.rank + 1)) % 2**63
        torch.default_generator.manual_seed(seed)
        if self.processes.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        device = self.processes.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16):
            yield


def _detach(term: LossTerm) -> LossTerm:
    return LossTerm(
        sum=term.sum.detach(),
        count=term.count.detach(),
        values=None if term.values is None else term.values.detach(),
        levels=None if term.levels is None else term.levels.detach(),
    )
