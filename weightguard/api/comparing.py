"""`inspect --base`: two checkpoints opened, paired, walked over once, and what that says."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.subject import names_other_base
from weightguard.checkpoint import Checkpoint, Resolved, bypassing, lora_pairs, named_like, open_checkpoint, resolve
from weightguard.checkpoint.adapter import base_tensors
from weightguard.errors import InputError, MismatchError, SystemFailure, UsageError

if TYPE_CHECKING:
    from weightguard.api.inspecting import Progress
    from weightguard.comparison.case import Case
    from weightguard.comparison.entries import Entries
    from weightguard.comparison.heat import Cell, Heat  # noqa: F401
    from weightguard.comparison.pairs import Matching, TensorChange
    from weightguard.comparison.safety import Relevance
    from weightguard.comparison.sides import Side
    from weightguard.comparison.spectra import Spectrum
    from weightguard.comparison.verdict import Verdict

SCHEMA = "weightguard-comparison"
VERSION = 3


@dataclass(frozen=True)
class Comparison:
    """MODEL against BASE. `changes`: every tensor that could be compared. problems: tensors with NaN or infinity.

    spectra: of changed matrices, by name, where asked for. relevance: the alignment map, with --aligned and --unaligned.
    adapted: MODEL is an adapter, or has one over it. gaps: names of what could not be compared, by reason.
    """

    model: str
    base: str
    matching: Matching
    changes: tuple[TensorChange, ...]
    verdict: Verdict
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    spectra: Mapping[str, Spectrum] = field(default_factory=dict)
    relevance: Mapping[str, Relevance] = field(default_factory=dict)
    aligned: str | None = None
    unaligned: str | None = None
    adapted: bool = False
    gaps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def heat(self) -> Heat:
        """‖D‖/‖W_base‖ by layer and role."""
        from weightguard.comparison.heat import heat_of

        return heat_of(self.changes)

    @property
    def entries(self) -> Entries | None:
        """Histogram of the entries of all updates; None where no matrix changed."""
        from weightguard.comparison.entries import entries_of

        return entries_of(self.changes)

    @property
    def suggestion(self) -> tuple[str, ...]:
        """The repair that this kind of change calls for, with the reason."""
        from weightguard.api.suggesting import suggested

        return suggested(self.verdict, self.model, self.base, adapted=self.adapted)

    def by_layer(self) -> list[tuple[str, Relevance]]:
        """The alignment map summed by layer, and over everything."""
        from weightguard.comparison.safety import total

        layers = [(f"layer {layer}", total(parts)) for layer, parts in self._relevance_by_layer().items()]
        return [*layers, ("all", total(self.relevance.values()))]

    def _relevance_by_layer(self) -> dict[int, list[Relevance]]:
        layers = {c.name: c.layer for c in self.changes}
        return {layer: [r for n, r in self.relevance.items() if layers[n] == layer] for layer in sorted_layers(self)}

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, which `schema` describes; what is infinite is None."""
        return finite(self.figures())

    def figures(self) -> dict[str, Any]:
        """The same as it was computed: a tensor that was zero has grown by infinity."""
        from weightguard.comparison.safety import total

        *commands, why = self.suggestion or (None,)
        whole = total(self.relevance.values()).as_dict() if self.relevance else None
        layers = {str(layer): total(parts).as_dict() for layer, parts in self._relevance_by_layer().items()}
        return {
            "schema": SCHEMA, "version": VERSION, "model": self.model, "base": self.base, "aligned": self.aligned,
            "unaligned": self.unaligned, "relation": self.matching.relation,
            "not_compared": {
                **{reason: list(names) for reason, names in self.gaps.items()},
                "rows": {c.name: c.rows_left_out for c in self.changes if c.rows_left_out},
            },
            "verdict": dataclasses.asdict(self.verdict), "notes": list(self.notes),
            "repair": {"commands": list(commands), "reason": why},
            "problems": list(self.problems), "tensors": [c.as_dict() for c in self.changes],
            "heat": [dataclasses.asdict(cell) for cell in self.heat.cells],
            "spectra": {name: spectrum.as_dict() for name, spectrum in self.spectra.items()},
            "alignment": {"total": whole, "layers": layers, "tensors": {n: r.as_dict() for n, r in self.relevance.items()}},
        }  # fmt: skip


def finite(value: Any) -> Any:
    """JSON knows no infinity: None instead, at any depth."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sorted_layers(found: Comparison) -> list[int]:
    """The layers of which the alignment map holds something."""
    return sorted({c.layer for c in found.changes if c.name in found.relevance and c.layer is not None})


def run_compare(
    reference: str,
    base: str | None,
    aligned: str | None,
    unaligned: str | None,
    *,
    spectra: bool,
    offline: bool,
    progress: Progress,
    page: Path | None = None,
) -> Comparison:
    """The comparison of MODEL, ADAPTER or MODEL+ADAPTER with BASE, for a `page` that may lie in none of them.

    Errors: as when opening; UsageError without a base.
    """
    from weightguard.checkpoint.writer import check_apart
    from weightguard.comparison.verdict import judge
    from weightguard.statistics.loading import pinned_threads

    if unaligned is not None and aligned is None:
        raise UsageError("--unaligned: the alignment direction is aligned minus unaligned; give --aligned too")
    model, origin, notes = _sides(reference, base or aligned, offline)
    others = {
        k: _reference(v, k, origin.files, offline) for k, v in (("aligned", aligned), ("unaligned", unaligned)) if v
    }
    notes += [note for role, side in others.items() for note in _fitting(origin, role, side)]
    if page is not None:
        parts = [part for side in (model, origin, *others.values()) for part in (side.files, side.adapter)]
        check_apart(page, [part.directory for part in parts if part is not None], "--html")
    with pinned_threads(1):  # the last bits of a matrix product depend on it
        case, problems = case_of(model, origin, others, progress)
        seen = _spectra(case, progress) if spectra else {}
        relevance = _relevance(case, progress)
        verdict = judge(dataclasses.replace(case, known=seen))
    labels = {key: side.label for key, side in others.items()}
    return Comparison(
        model.label, origin.label, case.matching, case.changes, verdict, (*notes, *_lost(case)), problems, seen,
        relevance, labels.get("aligned"), labels.get("unaligned"), model.adapter is not None,
        case.gaps,
    )  # fmt: skip


def case_of(model: Side, base: Side, others: Mapping[str, Side], progress: Progress) -> tuple[Case, tuple[str, ...]]:
    """(the walk over both sides, what was wrong with tensors)."""
    from weightguard.comparison.case import Case
    from weightguard.comparison.pairs import match, walk

    matching = match(model, base)
    found = list(walk(model, base, matching, progress))
    odd = tuple(name for name in found if isinstance(name, str))
    said = tuple(f"tensor {name!r} holds NaN or infinity; it was left out" for name in odd)
    return Case(model, base, matching, tuple(c for c in found if not isinstance(c, str)), others, odd), said


def _spectra(case: Case, progress: Progress) -> dict[str, Spectrum]:
    found = {}
    for done, change in enumerate(case.matrices, 1):
        found[change.name] = case.spectrum(change, exact=True)
        progress("spectra", done, len(case.matrices))
    return found


def _relevance(case: Case, progress: Progress) -> dict[str, Relevance]:
    from weightguard.comparison.safety import relevance_map

    return relevance_map(case, progress) if len(case.others) == 2 else {}


def _lost(case: Case) -> list[str]:
    """What could not be compared, in words."""
    grown = [c for c in case.changes if c.rows_left_out]
    sizes = [(side.shape(c.name)[0] for side in (case.model, case.base)) for c in grown]
    said = [
        f"{c.name}: {ours} rows against {theirs} (another vocabulary); the first {c.shape[0]} were compared"
        for c, (ours, theirs) in zip(grown, sizes, strict=True)
    ]
    for key, words in (("reshaped", "have other shapes"), ("unread", "are stored as packed or 8 bit numbers"),
                       ("only_model", "are in the model only"), ("only_base", "are in the base only")):  # fmt: skip
        names = case.gaps[key]
        said += [f"{len(names)} tensors {words} (first: {names[0]})"] if names else []
    return said


def _sides(reference: str, base: str | None, offline: bool) -> tuple[Side, Side, list[str]]:
    """(MODEL, BASE, notes). An adapter over its own base shares the base's files, and D is s·B·A itself."""
    from weightguard.comparison.sides import Side

    resolved = resolve(reference, offline=offline)
    first = open_checkpoint(_alone(resolved))
    given = None if base is None else open_checkpoint(_alone(resolve(base, offline=offline)))
    if given is not None and given.is_adapter:
        raise UsageError(f"--base {given.label}: an adapter; give the full model that MODEL came from")
    if resolved.adapter is None and not first.is_adapter:
        if given is None:
            raise UsageError("--base BASE is missing: the model that MODEL came from")
        return Side(first), Side(named_like(given, first)), []
    adapter = first if resolved.adapter is None else open_checkpoint(resolved.adapter)
    under = given or _named_base(adapter, offline) if resolved.adapter is None else first
    model, notes = _adapted(under, adapter)
    origin = under if given is None or _same(given, under) else named_like(given, under)
    return model, Side(origin), [*notes, *_other_base(adapter, under)]


def _other_base(adapter: Checkpoint, under: Checkpoint) -> list[str]:
    """That the adapter's config names another base than the one it is put over."""
    named = adapter.config.get("base_model_name_or_path")
    return [f"the adapter's config names the base {named!r}, and it is compared over {under.label}"] * (
        names_other_base(adapter, under)
    )


def _adapted(under: Checkpoint, adapter: Checkpoint) -> tuple[Side, list[str]]:
    from weightguard.comparison.sides import Side

    if under.is_adapter or not adapter.is_adapter:
        raise UsageError(f"{under.label}+{adapter.label}: write MODEL+ADAPTER, a full model and then its adapter")
    odd = bypassing(adapter)
    notes = (
        [f"{len(odd)} tensors of the adapter (first: {odd[0]}) are no LoRA factors and were left out"] if odd else []
    )
    return Side(under, adapter, base_tensors(lora_pairs(adapter), under, adapter)), notes


def _named_base(adapter: Checkpoint, offline: bool) -> Checkpoint:
    name = adapter.config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError("adapter_config.json: no base_model_name_or_path; give the base with --base")
    try:
        return open_checkpoint(_alone(resolve(name, offline=offline)))
    except (InputError, SystemFailure) as error:
        raise type(error)(
            f"adapter_config.json names the base {name!r}, which cannot be opened ({error}); give its place with --base"
        ) from error


def _alone(resolved: Resolved) -> Resolved:
    return dataclasses.replace(resolved, adapter=None)


def _same(one: Checkpoint, other: Checkpoint) -> bool:
    return os.path.samefile(one.directory, other.directory)


def _fitting(base: Side, role: str, side: Side) -> list[str]:
    """What --aligned or --unaligned lacks of the decoder's matrices. Error: MismatchError where it has none of them."""
    lost = [name for name in base.linears if not side.holds(name, base.shape(name))]
    if lost and len(lost) == len(base.linears):
        raise MismatchError(
            f"--{role} {side.label}: has none of the {len(lost)} matrices of the decoder blocks in their shape (first: "
            f"{lost[0]}); give a model of the architecture of {base.label}"
        )
    return (
        [f"--{role} lacks {len(lost)} of {len(base.linears)} matrices (first: {lost[0]}); they are left out"]
        if lost
        else []
    )


def _reference(reference: str, role: str, base: Checkpoint, offline: bool) -> Side:
    from weightguard.comparison.sides import Side

    found = open_checkpoint(_alone(resolve(reference, offline=offline)))
    if found.is_adapter:
        raise UsageError(f"--{role} {found.label}: an adapter; give a full model")
    return Side(named_like(found, base))


def write_page(found: Comparison, path: Path, *, force: bool) -> None:
    """Write the comparison as one self-contained HTML page. Errors: OutputError, SystemFailure."""
    from weightguard.checkpoint.writer import write_file
    from weightguard.comparison.page import page

    write_file(path, page(found.figures(), found.entries).encode(), force=force)
