"""The parameters of a running model behind the names its checkpoint uses on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from weightguard.errors import MismatchError


@dataclass(frozen=True, eq=False)
class Target:
    """The parameter behind an on-disk tensor.

    transposed: stored (in, out), as Conv1D does. adapted: a peft layer holds it as its base and trains factors over it.
    """

    tensor: str
    parameter: torch.nn.Parameter
    module: torch.nn.Module
    transposed: bool
    adapted: bool

    def oriented(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor (out, in) in the order in which the parameter is stored, or the other way round; on its device."""
        return (tensor.T if self.transposed else tensor).to(self.parameter.device)

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Error: MismatchError where the parameter is not (out, in), which it is not when its training is sharded."""
        found = tuple(self.parameter.shape)
        if found != (shape[::-1] if self.transposed else shape):
            raise MismatchError(
                f"the guard knows tensor {self.tensor!r} as {list(shape)}, this model holds {list(found)}; "
                f"give the guard of this very model, and parameters that are not sharded"
            )


def known_targets(model: torch.nn.Module, names: Iterable[str]) -> dict[str, Target]:
    """On-disk tensor name -> its parameter, also below peft, DDP and torch.compile; names without one are left out."""
    modules = dict(model.named_modules())
    known = {_on_disk(path): path for path, _ in model.named_parameters(remove_duplicate=False)}
    # A checkpoint saved without its head class has names that lack the first component, or the other way round.
    shorter = {name.partition(".")[2]: path for name, path in known.items()}
    found = {}
    for name in names:
        path = known.get(name) or shorter.get(name) or known.get(name.partition(".")[2])
        if path is not None:
            owner, _, attribute = path.rpartition(".")
            module = modules[owner]
            transposed = type(module).__name__ == "Conv1D" and attribute == "weight"
            found[name] = Target(name, getattr(module, attribute), module, transposed, ".base_layer." in path)
    return found


def targets(model: torch.nn.Module, names: Iterable[str]) -> dict[str, Target]:
    """The same for names that must all be there. Error: MismatchError naming one."""
    wanted = list(names)
    found = known_targets(model, wanted)
    for name in wanted:
        if name not in found:
            raise MismatchError(f"the guard names tensor {name!r}, for which this model has no parameter")
    return found


def _on_disk(path: str) -> str:
    """A parameter's path without what wrappers put around and into it."""
    for prefix in ("module.", "_orig_mod.", "base_model.model."):
        path = path.removeprefix(prefix)
    return path.replace(".base_layer.", ".").replace("._orig_mod.", ".")
