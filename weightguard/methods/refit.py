"""Refit: solve each linear anew so that the model answers harmful prompts as the aligned model does and everything else
as the fine-tuned model does. Our own; with the inputs of the unrepaired models instead of those of the model repaired
so far it would be a regression mean (arXiv:2212.09849) of a harmful and a benign Gram matrix.

    W = argmin ‖X_b Wᵀ − Y_b‖²/n_b + s·‖X_h Wᵀ − Y_h‖²/n_h + rho·t·‖W − W_aligned‖²,   t = mean of diag(X_bᵀX_b)/n_b

Y_h: outputs of the aligned model at every token of the safety rows, or where an answer's tokens are predicted only
(`tokens="response"`); Y_b: of the tuned model at every token of the benign rows; X: inputs there in the model repaired up
to here. No gradient, no search, no unaligned base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weightguard.errors import UnsupportedError, UsageError
from weightguard.methods.factoring import factored, lost
from weightguard.methods.inputs import FromBehaviour, Inputs, spooled
from weightguard.options import as_number, option, settings

if TYPE_CHECKING:
    import torch

    from weightguard.plan import Edit, Plan
    from weightguard.statistics.sites import Site
    from weightguard.weights import Weights

BLOCK = 512  # positions that are in float64 at a time


@dataclass(frozen=True, kw_only=True)
class Refit(FromBehaviour):
    """Refuse as the aligned model does, answer the rest as the tuned one does: every linear in closed form."""

    NAME: ClassVar[str] = "refit"
    PAPER: ClassVar[str] = "weightguard"
    STRENGTH: ClassVar[tuple[str, ...]] = ()
    BLOCKS: ClassVar[bool] = True  # see EntrySelection

    s: Decimal | float | str = option(Decimal(10), "weight of the safety rows against the benign rows")
    rho: Decimal | float | str = option(Decimal("0.3"), "pull to the aligned weights, in units of the mean input power")
    tokens: str = option("all", "tokens of the safety rows that count: template, prompt and answer, or those alone at "
                         "which a token of the answer is predicted", ("all", "response"))  # fmt: skip
    few_tokens: str = option("aligned", "routed expert that too few tokens reach: keeps the aligned or the tuned weights",
                      ("aligned", "tuned"))  # fmt: skip
    expert_tokens: int = option(16, "fewer tokens of both roles together are too few for an expert")
    rank: int | None = option(None, "write a LoRA adapter of this rank over the aligned model, instead of a full model")

    def counted(self) -> dict[str, str]:
        """Of benign rows every token."""
        return {"safety": self.tokens, "benign": "all"}

    def settled(self, target: str, *, adapter: bool = False) -> Self:
        """Numbers as decimals. Errors: UsageError without an aligned model, or out of range."""
        self.check_target(target)
        if type(self.expert_tokens) is not int or self.expert_tokens < 0:
            raise UsageError(f"--expert-tokens {self.expert_tokens}: must be 0 or more")
        if self.rank is not None and (type(self.rank) is not int or self.rank < 1):
            raise UsageError(f"--rank {self.rank}: must be 1 or more")
        return dataclasses.replace(self, s=as_number(self.s, "s", 0), rho=as_number(self.rho, "rho", 1e-9))

    @property
    def unbounded(self) -> str:
        """The option under which more than one layer of a model is held at once, or none."""
        return "--rank" if self.rank is not None else f"--judge {self.judge}" if self.judge != "none" else ""

    def plan(self, inputs: Inputs) -> Plan:
        """A Replace for every linear, or with a rank a LowRank over the aligned one. Errors: CheckpointError, DataError."""
        from weightguard.plan import Plan

        assert inputs.side_by_side is not None
        if self.rank is not None and any(linear.expert is not None for linear in inputs.linears.values()):
            dense = dict.fromkeys(linear.role for linear in inputs.linears.values() if linear.expert is None)
            raise UnsupportedError(
                f"--rank: no adapter holds routed experts; leave it out, or --scope {','.join(dense)}"
            )
        walk = inputs.side_by_side()
        edits: dict[str, Edit] = {}
        evidence: dict[str, dict[str, Any]] = {}
        for site in walk.sites():
            for name, edit, said in self._solved(site, inputs):
                edits[name], evidence[name] = edit, said
        target = self.target if self.rank is None else "adapter"
        return Plan(self.NAME, self.PAPER, target, settings(self), edits, evidence, _notes(evidence, self.rank))

    def _solved(self, site: Site, inputs: Inputs) -> Iterator[tuple[str, Edit, dict[str, Any]]]:
        from weightguard.weights import distances, open_weights

        weights = {name: open_weights(inputs.sources, name, with_aligned=True) for name in site.names}
        aligned = _stacked(_aligned(each) for each in weights.values()).to(inputs.device)
        if inputs.linears[site.names[0]].expert is not None and self._too_few(site):
            moved, said = self._kept(site, weights, aligned)
        else:
            moved, said = change(site, aligned, float(self.s), float(self.rho))
        rows = [each.shape[0] for each in weights.values()]
        for (name, each), origin, move in zip(weights.items(), aligned.split(rows), moved.split(rows), strict=True):
            made = _replaced if self.rank is None else _factored
            edit, stored, known = made(name, origin.cpu(), move.cpu(), self.rank or each.stored.dtype)
            site.put(name, stored)
            linear = inputs.linears[name]
            shape = {"layer": linear.layer, "role": linear.role, "shape": list(each.shape)}
            yield name, edit, {**shape, **said, **known, **distances(stored.double(), origin.cpu(), _tuned(each))}

    def _too_few(self, site: Site) -> bool:
        return sum(site.positions.values()) < max(1, self.expert_tokens)

    def _kept(
        self, site: Site, weights: dict[str, Weights], aligned: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """As `change`, for an expert that keeps the weights it had in one of the models."""
        wanted = _stacked(_tuned(each) for each in weights.values()) if self.few_tokens == "tuned" else aligned
        return wanted.to(aligned.device) - aligned, {"positions": dict(site.positions), "kept": self.few_tokens}


def _replaced(name: str, aligned: torch.Tensor, moved: torch.Tensor, dtype: Any) -> tuple[Edit, torch.Tensor, dict]:
    """The whole tensor anew: the edit, the tensor as it will be stored, and what storing costs."""
    from weightguard.plan import Replace

    exact = aligned + moved
    stored = exact.to(dtype)
    rounding = float((stored.double() - exact).norm() / exact.norm().clamp_min(1e-300))
    return Replace(name, spooled(exact.float().numpy())), stored, {"rounding": rounding}


def _factored(name: str, aligned: torch.Tensor, moved: torch.Tensor, rank: int) -> tuple[Edit, torch.Tensor, dict]:
    """The change cut to its leading singular directions: the edit, the tensor it makes, and the energy that is lost."""
    edit, product, said = factored(name, moved, rank)
    return edit, aligned + product, said


def _notes(evidence: dict[str, dict[str, Any]], rank: int | None) -> tuple[str, ...]:
    """What storing costs, where it is more than float32's own rounding."""
    if rank is not None:
        return (*lost(evidence, rank), *_unsolved(evidence))
    most = max((said["rounding"] for said in evidence.values()), default=0.0)
    cost = (f"rounding to the stored dtype moves the solution by up to {most:.1e} of a tensor",) if most > 1e-6 else ()
    return (*cost, *_unsolved(evidence))


def _unsolved(evidence: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Which tensors of experts were not solved for."""
    kept = {name: said for name, said in evidence.items() if "kept" in said}
    if not kept:
        return ()
    first, said = next(iter(kept.items()))
    return (f"{len(kept)} tensors of experts keep the {said['kept']} weights, since too few tokens reach them "
            f"(first: {first}, {sum(said['positions'].values())})",)  # fmt: skip


def change(site: Site, aligned: torch.Tensor, s: float, rho: float) -> tuple[torch.Tensor, dict[str, Any]]:
    """W − W_aligned of a site's linears, one below the other as in `aligned` (out, in), float64, and how it was found."""
    import torch

    from weightguard.statistics.ridge import Ridge

    n, measure = site.positions, "benign" if site.positions["benign"] else "safety"
    width, weight = aligned.shape[1], {"safety": s / max(1, n["safety"]), "benign": 1 / max(1, n["benign"])}
    ridge, power = Ridge(width, sum(n.values())), 0.0
    for part in site.samples():
        for x, *y in zip(part.x.split(BLOCK), *(each.split(BLOCK) for each in part.wanted.values()), strict=True):
            ridge.add(x, torch.cat(y, 1), weight[part.role])
            if part.role == measure:
                power += float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2 / (width * n[measure])
    moved = ridge.solve(rho * power if power else rho, aligned.T).sub_(aligned.T).T
    return moved, {"positions": dict(n), "solved": "dual" if ridge.dual else "primal", "input_power": power}


def _stacked(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.cat(list(parts))


def _tuned(weights: Weights) -> torch.Tensor:
    return weights.tuned(0, weights.shape[0]).double()


def _aligned(weights: Weights) -> torch.Tensor:
    assert weights.aligned is not None
    return weights.aligned(0, weights.shape[0]).double()
