"""The verb that puts a repair to the test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weightguard.api.calling import Progress, silent, text

if TYPE_CHECKING:
    from weightguard.api.validating import Validated


def validate(
    before: str,
    after: str,
    *,
    reference: str,
    out: str | Path,
    harmful: str | None = None,
    benign: str | None = None,
    over_refusal: str | None = None,
    task: str | None = None,
    attacks: str | Path | None = None,
    attack_harmful: str | None = None,
    attack_benign: str | None = None,
    controls: bool = False,
    safety: str | None = None,
    judges: Sequence[str] = ("refusal-phrases",),
    disjoint_from: Sequence[str] = (),
    harm_limit: float = 0.10,
    loss_limit: float = 0.05,
    cell: str | None = None,
    work: str | Path | None = None,
    force: bool = False,
    match: str = "exact",
    seed: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    examples: int = 3,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    max_length: int = 2048,
    offline: bool = False,
    progress: Progress = silent,
) -> Validated:
    """Measure BEFORE, AFTER, controls, and AFTER under every attack of a grid, against the reference and its like.

    attacks: a grid (TOML). controls: repairs of BEFORE that look at no data, of the size of the repair, or with `safety`
    at automatic strength. Each cell runs in a process of its own, is kept in `work` (None: beside `out`) and is not run
    again; cell: run one only, and write no report while others are missing. harm_limit, loss_limit: the bounds of the
    four immunization conditions. Errors: the tree in `weightguard.errors`.
    """
    from weightguard.api.collect import Running
    from weightguard.api.evaluating import Asking
    from weightguard.api.validating import Asked, Output, run_validate
    from weightguard.validate.immunization import Bounds

    given = {"harmful": harmful, "benign": benign, "over_refusal": over_refusal, "task": task}
    asked = Asked(
        str(before), str(after), str(reference), {role: str(each) for role, each in given.items() if each is not None},
        None if attacks is None else Path(attacks), text(attack_harmful), text(attack_benign), controls, text(safety),
        tuple(judges), tuple(map(str, disjoint_from)), cell,
    )  # fmt: skip
    home = Path(out).with_name(f"{Path(out).name}.cells") if work is None else Path(work)
    return run_validate(
        asked, Bounds(harm_limit, loss_limit), Asking(match, seed, max_new_tokens, batch_size, examples),
        Running(device, dtype, threads, max_length), Output(Path(out), home, force), offline, progress,
    )  # fmt: skip
