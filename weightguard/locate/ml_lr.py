"""ML-LR (arXiv:2410.04524): modules that can be disturbed without loss of security learn fast, the others slowly.

Published: modules (type × layer) are perturbed, a linear classifier of harmful and benign prompts on hidden states stands in
for security, a greedy search finds the largest robust set, and fine-tuning keeps the learning rate there and lowers it
elsewhere. The exact procedure and its constants are not known to us. Ours, with no claim to fidelity: Gaussian noise of
`noise` times the weights' standard deviation; the probe is fitted on every other prompt as the model stands and asked about
the rest; modules are tried in the order of the harm they do alone, and one stays in the set as long as the probe's accuracy
does not fall by more than `tolerance`. Two forward passes over the prompts a module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weightguard.errors import DataError, UsageError
from weightguard.locate.drawn import seed_of
from weightguard.locate.material import Found, Material
from weightguard.options import as_decimal, as_share, option
from weightguard.parts import Part

if TYPE_CHECKING:
    import torch

    from weightguard.statistics.probe import Probe

LEAST = 0.75  # accuracy below which the probe says nothing about security
MOST_NOISE = 100  # times the standard deviation: beyond it nothing of a module is left
LEAST_ROWS = 4  # of each class: two to fit, two to ask


@dataclass(frozen=True, kw_only=True)
class ModularRates:
    """A factor on the learning rate of every decoder linear: 1 where the model is robust, `slow` elsewhere."""

    NAME: ClassVar[str] = "ml-lr"
    PAPER: ClassVar[str] = "arXiv:2410.04524"
    TOKENS: ClassVar[str] = "prompt"

    noise: Decimal | float | str = option("1", "noise on a module, in standard deviations of its weights")
    tolerance: Decimal | float | str = option("0.02", "accuracy of the probe that the robust modules may cost together")
    slow: Decimal | float | str = option("0.1", "factor on the learning rate of the modules that are not robust")
    seed: int = option(0, "seed of the noise")
    scope: str = option("all", "roles to look at: all, or for example q,k,v")

    def settled(self) -> Self:
        """Checked. Error: UsageError."""
        for name in ("tolerance", "slow"):
            as_share(getattr(self, name), name)
        if not 0 < as_decimal(self.noise, "noise") <= MOST_NOISE:
            raise UsageError(
                f"--noise {self.noise}: must be above 0, where nothing is disturbed, and at most {MOST_NOISE}"
            )
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        return ("safety", "utility")

    def find(self, material: Material) -> Found:
        """Errors: DataError for too few prompts of a class, or when a probe cannot tell the classes apart."""
        proxy = _Proxy(material)
        least = proxy.accuracy - float(as_share(self.tolerance, "tolerance"))
        modules = list(material.linears)
        alone = [self._alone(material, proxy, name, done, 2 * len(modules)) for done, name in enumerate(modules, 1)]
        order = sorted(range(len(modules)), key=lambda at: (-alone[at], at))
        robust, together = self._greedy(material, proxy, [modules[at] for at in order], least)
        slow = float(as_share(self.slow, "slow"))
        parts = {n: Part("rate", material.shape(n), rate=1.0 if n in robust else slow) for n in modules}
        said = {"probe_accuracy": proxy.accuracy, "robust_modules": len(robust), "modules": len(modules),
                "accuracy_with_robust_disturbed": together,
                "accuracy_alone": dict(zip(modules, alone, strict=True))}  # fmt: skip
        every = (f"every module bears noise {self.noise}, so none would learn slowly; a larger --noise tells more",)
        return Found(parts, said, every if len(robust) == len(modules) else ())

    def _alone(self, material: Material, proxy: _Proxy, name: str, done: int, total: int) -> float:
        with self._disturbed(material, name):
            found = proxy.measure()
        material.progress("perturb", done, total)
        return found

    def _greedy(self, material: Material, proxy: _Proxy, names: Sequence[str], least: float) -> tuple[set[str], float]:
        """The robust set and the probe's accuracy with all of it disturbed; the model is left as it was."""
        robust, together, held = set(), proxy.accuracy, {}
        for done, name in enumerate(names, len(names) + 1):
            held[name] = self._disturb(material, name)
            found = proxy.measure()
            if found >= least:
                robust.add(name)
                together = found
            else:
                _put_back(material, name, held.pop(name))
            material.progress("perturb", done, 2 * len(names))
        for name, before in held.items():
            _put_back(material, name, before)
        return robust, together

    @contextmanager
    def _disturbed(self, material: Material, name: str) -> Iterator[None]:
        before = self._disturb(material, name)
        try:
            yield
        finally:
            _put_back(material, name, before)

    def _disturb(self, material: Material, name: str) -> torch.Tensor:
        """Add the module's own noise to the running model; returns the weight as it was."""
        import torch

        weight = material.weight(name)
        generator = torch.Generator().manual_seed(seed_of(name, self.seed))
        draw = torch.randn(weight.shape, generator=generator).to(weight.device, weight.dtype)
        before = weight.detach().clone()
        with torch.no_grad():
            weight += float(self.noise) * before.double().std().item() * draw
        return before


def _put_back(material: Material, name: str, before: torch.Tensor) -> None:
    import torch

    with torch.no_grad():
        material.weight(name).copy_(before)


class _Proxy:
    """The probe, fitted on every other prompt of the model as it stands, and its accuracy on the rest."""

    def __init__(self, material: Material) -> None:
        from weightguard.statistics.probe import fit_probe

        self._material = material
        self._rows = {role: material.data[role].rows for role in ("safety", "utility")}
        for role, rows in self._rows.items():
            if len(rows) < LEAST_ROWS:
                raise DataError(f"--{role}: {len(rows)} prompts; the probe needs at least {LEAST_ROWS} of each class")
        self._probe: Probe = fit_probe(*(self._states(role, 0) for role in self._rows))
        self.accuracy = self.measure()
        if self.accuracy < LEAST:
            raise DataError(
                f"a probe tells --safety from --utility prompts in {self.accuracy:.0%} of the cases, {LEAST:.0%} are needed; "
                f"give prompts that differ in harm, and more of them"
            )

    def measure(self) -> float:
        """Accuracy on the prompts it was not fitted on, of the model as it is now."""
        return self._probe.accuracy(*(self._states(role, 1) for role in self._rows))

    def _states(self, role: str, start: int) -> Any:
        from weightguard.statistics.probe import last_states

        return last_states(self._material.model, self._rows[role][start::2], lambda done, total: None)
