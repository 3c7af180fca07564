"""What the user pointed at: a full model, an adapter, or a model with an adapter, and the aligned model it came from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from weightguard.checkpoint import (
    Checkpoint,
    Linear,
    LoraPair,
    Merged,
    Resolved,
    adapter_linears,
    base_model,
    bypassing,
    check_editable,
    check_pairing,
    check_same,
    decoder_linears,
    foreign_names,
    in_scope,
    is_known,
    misfits,
    named_like,
    open_checkpoint,
    resolve,
)
from weightguard.checkpoint.adapter import base_tensors, lora_pairs
from weightguard.errors import CheckpointError, InputError, MismatchError, SystemFailure, UnsupportedError, UsageError

if TYPE_CHECKING:
    from weightguard.statistics.subspace import Direction
    from weightguard.weights import Sources


@dataclass(frozen=True)
class Subject:
    """`model`: the full model, or the base of `adapter`. `aligned`: the reference, which for an adapter is its base."""

    model: Checkpoint
    adapter: Checkpoint | None
    aligned: Checkpoint | None
    notes: tuple[str, ...]
    unaligned: Checkpoint | None = None

    @property
    def directories(self) -> tuple:
        """Where a tokenizer may lie, the most specific place first."""
        return (*([self.adapter.directory] if self.adapter else []), self.model.directory)

    @property
    def inputs(self) -> tuple:
        """Every directory that is read, and that no output may touch."""
        return tuple(
            part.directory for part in (self.model, self.adapter, self.aligned, self.unaligned) if part is not None
        )

    @cached_property
    def named(self) -> dict[str, Linear]:
        """The decoder linears by the on-disk names of the full model."""
        try:
            return decoder_linears(self.model.config, self.model.tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self.odd}") if self.odd else error from None

    @cached_property
    def odd(self) -> str | None:
        """What the names of the model's tensors tell, where no stock class would find its weights by them."""
        return foreign_names(self.model.config, self.model.tensors)

    def check_shapes(self) -> None:
        """Refuse tensors that are not what the config makes. Layers that lack some are told where all are needed."""
        if not is_known(self.model.config):
            return
        try:
            found = self.named
        except (CheckpointError, UnsupportedError):
            return
        for misfit in misfits(self.model.config, found, self.model.tensors):
            raise CheckpointError(str(misfit))

    def default_target(self) -> str:
        return "delta" if self.aligned is not None else "weight"

    def sources(self, target: str) -> Sources:
        """What a plan for this target reads and rewrites. Errors: UsageError when the target needs what is not there."""
        from weightguard.weights import Sources

        if target == "factor":
            if self.adapter is None:
                raise UsageError("--target factor needs an adapter; for a full model give --target delta or weight")
            return Sources(self.adapter, None, None, {})
        if target == "delta" and self.aligned is None:
            raise UsageError("--target delta needs the aligned model; give --aligned")
        merged = Merged(self.model, self.adapter) if self.adapter else None
        if merged is not None:
            _ = merged.pairs  # pairs every module now, before anything long starts
        return Sources(self.model, merged, self.aligned, self.named, self.unaligned)

    def direction(self, name: str) -> Direction:
        """V = W_aligned − W_unaligned of a linear of the full model. Errors: UsageError, MismatchError."""
        from weightguard.statistics.subspace import Direction, rounding_of
        from weightguard.weights import logical_rows

        if self.aligned is None or self.unaligned is None:
            lacking = "--aligned" if self.aligned is None else "--unaligned"
            raise UsageError(f"the alignment direction is aligned minus unaligned; give {lacking}")
        sides = (self.aligned, self.unaligned)
        check_same(name, *sides)
        aligned, unaligned = (logical_rows(side, name, self.named) for side in sides)
        rows, columns = self.aligned.info(name).shape
        turned = name in self.named and self.named[name].transposed
        shape = (columns, rows) if turned else (rows, columns)
        return Direction(aligned, unaligned, shape, rounding_of(*(side.info(name).dtype for side in sides)))

    def editable(self, target: str, scope: str) -> dict[str, Linear]:
        """The tensors a method may edit under this target and scope, by on-disk name."""
        linears = in_scope(self.named, scope)
        if self.adapter is None:
            return linears
        pairs = Merged(self.model, self.adapter).pairs if target != "factor" else self.factor_pairs()
        if target == "factor":
            return adapter_linears(pairs, linears)
        return linears if target == "weight" else {n: linear for n, linear in linears.items() if n in pairs}

    def factor_pairs(self) -> Mapping[str, LoraPair]:
        """Base tensor -> LoRA pair of the adapter, whatever else the adapter holds."""
        assert self.adapter is not None
        return base_tensors(lora_pairs(self.adapter), self.model, self.adapter)


def open_subject(
    reference: str,
    aligned: str | None = None,
    unaligned: str | None = None,
    *,
    offline: bool = False,
    search: bool = True,
    named: bool = False,
) -> Subject:
    """Resolve, open and pair. `search`: look for the aligned model where none is given. Errors name file or tensor.

    named: roles of all its tensors are needed, so that an architecture without a row in the table is refused.
    """
    subject = _tuned(reference, aligned, offline, search)
    subject.check_shapes()  # a config of another model is told now, before a library trips over it
    if named:
        _ = subject.named
    if subject.odd:
        subject = dataclasses.replace(subject, notes=(*subject.notes, f"{subject.model.label}: {subject.odd}"))
    if unaligned is None:
        return subject
    before = open_checkpoint(_alone(resolve(unaligned, offline=offline)))
    if before.is_adapter:
        raise UsageError(f"--unaligned {before.label}: an adapter; give the full model that alignment started from")
    check_editable(before)
    return dataclasses.replace(subject, unaligned=named_like(before, subject.model))


def _tuned(reference: str, aligned: str | None, offline: bool, search: bool) -> Subject:
    resolved = resolve(reference, offline=offline)
    first = open_checkpoint(_alone(resolved))
    if resolved.adapter is not None:
        return _pair(first, open_checkpoint(resolved.adapter), aligned)
    if first.is_adapter:
        base, said = _base_of(first, aligned, offline)
        return _with_adapter(base, first, None, said)
    check_editable(first)
    found, notes = _aligned_for(first, aligned, offline, search)
    if found is not None:
        check_editable(found)
        found = named_like(found, first)
        _check_reference(first, found, given=aligned is not None)
    return Subject(first, None, found, notes)


def _check_reference(model: Checkpoint, found: Checkpoint, *, given: bool) -> None:
    try:
        check_pairing(model, found, list(model.tensors))
    except MismatchError as error:
        hint = "" if given else "; give the right reference with --aligned, or --target weight to go without"
        raise MismatchError(f"{error}{hint}") from error


def _alone(resolved: Resolved) -> Resolved:
    return Resolved(resolved.directory, resolved.repo, resolved.revision, resolved.label, None)


def _with_adapter(base: Checkpoint, adapter: Checkpoint, aligned: str | None, said: str) -> Subject:
    if base.is_adapter or not adapter.is_adapter:
        raise UsageError(f"{base.label}+{adapter.label}: write MODEL+ADAPTER, a full model and then its adapter")
    if aligned is not None and not os.path.samefile(resolve(aligned).directory, base.directory):
        raise UsageError(
            f"--base, or --aligned: what MODEL+ADAPTER is measured from is MODEL itself, {base.label}; leave it out. To undo "
            f"what was done to MODEL since another model, repair MODEL alone and put the adapter over the result"
        )
    check_editable(base)
    others = bypassing(adapter)
    notes = [f"aligned reference: {said}"]
    if others:
        notes.append(
            f"{len(others)} tensors of the adapter (first: {others[0]}) are no LoRA factors and stay as they are"
        )
    return Subject(base, adapter, base, tuple(notes))


def _pair(model: Checkpoint, adapter: Checkpoint, aligned: str | None) -> Subject:
    """MODEL+ADAPTER."""
    subject = _with_adapter(model, adapter, aligned, "the model before the +")
    if not names_other_base(adapter, model):
        return subject
    said = "the adapter's config names another base than the model before the +"
    return dataclasses.replace(subject, notes=(*subject.notes, said))


def names_other_base(adapter: Checkpoint, under: Checkpoint) -> bool:
    """Whether the adapter's config names another base than the model it is put over, by the last part of the name."""
    name = adapter.config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name or _last(name) in (_last(under.label), under.directory.name):
        return False
    return not (os.path.isdir(name) and os.path.samefile(name, under.directory))


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].split("@")[0]


def _base_of(adapter: Checkpoint, aligned: str | None, offline: bool) -> tuple[Checkpoint, str]:
    name = adapter.config.get("base_model_name_or_path")
    if aligned is not None:
        base = open_checkpoint(resolve(aligned, offline=offline))
        _check_base(adapter, base, name)
        return base, "given with --aligned"
    if not isinstance(name, str) or not name:
        raise InputError("adapter_config.json: no base_model_name_or_path; give the base with --aligned")
    return _opened(name, offline, "adapter_config.json names the base"), "the base named by adapter_config.json"


def _check_base(adapter: Checkpoint, base: Checkpoint, name: object) -> None:
    """Where the base that the adapter names lies on this disk, --aligned must hold the same weights under the adapter."""
    if not isinstance(name, str) or not os.path.isdir(name) or os.path.samefile(name, base.directory):
        return
    named = named_like(open_checkpoint(resolve(name)), base)
    for tensor in base_tensors(lora_pairs(adapter), base, adapter):
        ours, theirs = base.info(tensor), named.tensors.get(tensor)
        if (
            theirs is None
            or theirs.shape != ours.shape
            or (theirs.dtype == ours.dtype and named.digest(tensor) != base.digest(tensor))
        ):
            raise MismatchError(
                f"{adapter.label} was trained over {named.label}, whose tensor {tensor!r} is not that of {base.label}, "
                f"given with --aligned; give the model that adapter_config.json names"
            )


def _aligned_for(
    model: Checkpoint, aligned: str | None, offline: bool, search: bool
) -> tuple[Checkpoint | None, tuple[str, ...]]:
    name = base_model(model.directory) if search or aligned is not None else None
    if aligned is not None:
        found = open_checkpoint(resolve(aligned, offline=offline))
        other = name is not None and os.path.isdir(name) and not os.path.samefile(name, found.directory)
        said = ("the model card names another base model than the one given with --aligned",) if other else ()
        return found, ("aligned reference: given with --aligned", *said)
    if name is None:
        return None, ()
    found = _opened(name, offline, "README.md names the base model")
    return found, ("aligned reference: the base_model of the model card",)


def _opened(name: str, offline: bool, said: str) -> Checkpoint:
    try:
        return open_checkpoint(resolve(name, offline=offline))
    except (InputError, SystemFailure) as error:
        raise type(error)(
            f"{said} {name!r}, which cannot be opened ({error}); give its place with --aligned"
        ) from error
