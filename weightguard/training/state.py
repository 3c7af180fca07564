"""The state of a run between two steps, in one file that is whole or not there.

The file is safetensors: what is trained under `parameter|NAME`, the optimizer's tensors under `optimizer|AT|KEY`, extras
of the caller under `extra|NAME`; the metadata hold the step, the losses so far and a fingerprint of the run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from weightguard.checkpoint import strict_json
from weightguard.checkpoint.writer import sync_directory
from weightguard.errors import InputError, MismatchError, SystemFailure

_KEY = "weightguard_training"


@dataclass(frozen=True)
class Moment:
    """Where a run stands: steps done, their losses, and the extras it was saved with."""

    step: int = 0
    losses: tuple[float, ...] = ()
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StateFile:
    """`every`: steps between two saves. `fingerprint`: what must be the same for a run to go on (digests, options)."""

    path: Path
    fingerprint: Mapping[str, object]
    every: int
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def save(self, moment: Moment, trained: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Write the state; a kill on the way leaves the one before."""
        from safetensors.torch import save_file

        tensors = {f"parameter|{name}": tensor.detach().contiguous() for name, tensor in trained.items()}
        tensors |= {f"extra|{name}": tensor for name, tensor in self.extras.items()}
        for at, tensor in enumerate(trained.values()):
            tensors |= {f"optimizer|{at}|{key}": value for key, value in optimizer.state[tensor].items()}
        said = {"step": moment.step, "losses": list(moment.losses), "fingerprint": dict(self.fingerprint)}
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary, {_KEY: json.dumps(said)})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.path)
            sync_directory(self.path.parent)
        except OSError as error:
            raise SystemFailure(f"{self.path}: cannot be written: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def check(self) -> Moment:
        """Where the saved run stands. Errors: InputError (no state, damaged), MismatchError (of another run)."""
        from safetensors import safe_open

        said = self._said()
        theirs = said["fingerprint"]
        for key, ours in self.fingerprint.items():
            if theirs.get(key) != ours:
                raise MismatchError(
                    f"{self.path.name}: the unfinished run has another {_difference(key, theirs.get(key), ours)}; repeat its "
                    f"command with --resume, or begin anew with --force"
                )
        with safe_open(self.path, "pt") as file:
            names = [name for name in file.keys() if name.startswith("extra|")]  # noqa: SIM118 - no mapping
            extras = {name.removeprefix("extra|"): file.get_tensor(name) for name in names}
        return Moment(said["step"], tuple(said["losses"]), extras)

    def load(self, trained: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> Moment:
        """Put the saved values into the parameters and the optimizer. Errors: InputError, MismatchError."""
        from safetensors import safe_open

        moment = self.check()
        with safe_open(self.path, "pt") as file, torch.no_grad():
            names = set(file.keys())
            for at, (name, tensor) in enumerate(trained.items()):
                if f"parameter|{name}" not in names:
                    raise MismatchError(f"{self.path.name}: holds no {name!r}; it is the state of another run")
                tensor.copy_(file.get_tensor(f"parameter|{name}"))
                start = f"optimizer|{at}|"
                held = {key.removeprefix(start): file.get_tensor(key) for key in names if key.startswith(start)}
                optimizer.state[tensor] = {k: v.to(tensor.device) for k, v in held.items()}
        return moment

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)

    def _said(self) -> dict:
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            raise InputError(f"{self.path}: no unfinished run to resume; leave --resume out")
        try:
            with safe_open(self.path, "pt") as file:
                said = strict_json.parse((file.metadata() or {})[_KEY].encode(), self.path.name)
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{self.path.name}: a damaged state ({error}); begin anew with --force") from error
        if not isinstance(said, dict) or not {"step", "losses", "fingerprint"} <= said.keys():
            raise InputError(f"{self.path.name}: not the state of a run; begin anew with --force")
        return said


def _difference(key: str, theirs: object, ours: object) -> str:
    """ "seed (0, now 3)": the innermost setting that differs."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        inner = next((k for k in ours if theirs.get(k) != ours[k]), None)
        if inner is not None:
            return _difference(inner, theirs.get(inner), ours[inner])
    return f"{key} ({str(theirs)[:60]}, now {str(ours)[:60]})"
