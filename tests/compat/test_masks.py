"""Which entries change: every option of the selection against a stable sort of the same float32 score."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

import weightguard as wg

Build = Callable[..., Path]
Arrays = dict[str, numpy.ndarray]
GROUPS, ROUNDINGS = ("row", "matrix", "global"), ("exact", "reference")
ROLES = {
    "llama": ("q", "k", "v", "o", "gate", "up", "down"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "phi3": ("qkv", "down"),
}


@dataclass(frozen=True)
class Case:
    """A tuned and an aligned checkpoint whose weights are a few multiples of 1/8, and norms that are 1, 2 or 4: all ties."""

    model: Path
    aligned: Path
    stats: Path
    norms: Arrays
    transposed: bool


@pytest.fixture(scope="module")
def cases(
    checkpoint: Build, tmp_path_factory: pytest.TempPathFactory, files: SimpleNamespace
) -> Callable[[str, str], Case]:
    made: dict[tuple[str, str], Case] = {}

    def build(family: str, dtype: str) -> Case:
        if (family, dtype) not in made:
            model, aligned = (checkpoint(family, dtype, kind=kind, steps=8) for kind in ("tuned", "aligned"))
            path = tmp_path_factory.mktemp("stats") / "S"
            norms = write_statistics(path, files.tensors(model), family == "gpt2")
            made[family, dtype] = Case(model, aligned, path, norms, family == "gpt2")
        return made[family, dtype]

    return build


def decoder(weights: Arrays) -> list[str]:
    return [n for n, w in weights.items() if w.ndim == 2 and (".layers." in n or ".h." in n)]


def write_statistics(path: Path, weights: Arrays, transposed: bool, seed: int = 0) -> Arrays:
    """A statistics file of norms 1, 2 and 4 for every decoder matrix; the norms by name."""
    from weightguard.statistics.norms import InputNorms

    random, facts = (
        numpy.random.default_rng(seed),
        {"tokens": "all", "data": {"source": "made", "sha256": "", "rows": 1}},
    )
    norms = {n: random.choice([1.0, 2.0, 4.0], weights[n].shape[0 if transposed else 1]) for n in decoder(weights)}
    path.write_bytes(InputNorms({n: norm**2 * 4 for n, norm in norms.items()}, 4, facts).to_bytes())
    return {n: norm.astype(numpy.float32) for n, norm in norms.items()}


def wanted_masks(
    case: Case, scored: Arrays, naive: SimpleNamespace, ratio: str, group: str, rounding: str, norms: Arrays | None
) -> Arrays:
    """Masks in storage order of the float32 scores |x|·norms, or |x| alone."""
    logical = {n: x.T if case.transposed else x for n, x in scored.items()}
    scores = {n: numpy.abs(x) * (norms[n] if norms else numpy.float32(1)) for n, x in logical.items()}
    assert all(score.dtype == numpy.float32 for score in scores.values())
    masks = naive.masks(scores, ratio, group, rounding)
    return {n: mask.T if case.transposed else mask for n, mask in masks.items()}


def sides(case: Case, files: SimpleNamespace, target: str) -> tuple[Arrays, Arrays, Arrays]:
    """(tuned, what replaces an entry, what is scored), float32, decoder matrices only."""
    tuned, aligned = files.tensors(case.model), files.tensors(case.aligned)
    names = decoder(tuned)
    before = {n: tuned[n].astype(numpy.float32) for n in names}
    origin = {n: aligned[n].astype(numpy.float32) if target == "delta" else numpy.zeros_like(before[n]) for n in names}
    return before, origin, {n: before[n] - origin[n] for n in names}


def check(out: Path, before: Arrays, origin: Arrays, masks: Arrays, files: SimpleNamespace) -> None:
    """The output holds the origin where masked and the input elsewhere, and the manifest counts exactly that."""
    after, said = files.tensors(out), json.loads((out / "weightguard.json").read_text())["edits"]
    for name, mask in masks.items():
        wanted = numpy.where(mask, origin[name], before[name])
        assert files.same_bits(after[name].astype(numpy.float32), wanted), name
        if mask.any():
            assert said[name]["selected"] == mask.sum()
            assert said[name]["changed"] == (mask & (before[name] != origin[name])).sum()
    assert set(said) == {name for name, mask in masks.items() if mask.any()}


# Every group with every rounding in both targets, on each kind of storage; ratios that end in halves among them.
SOME = [
    ("llama", "float32", "weight", "row", "exact", "0.21875"),  # 3.5 of 16
    ("llama", "bfloat16", "weight", "matrix", "reference", "0.1"),
    ("llama", "float16", "delta", "global", "exact", "0.3"),
    ("llama", "bfloat16", "delta", "row", "reference", "0.07"),
    ("phi3", "float32", "delta", "matrix", "exact", "0.5"),
    ("phi3", "float16", "weight", "global", "reference", "0.25"),
    ("gpt2", "float32", "weight", "row", "reference", "0.01"),
    ("gpt2", "bfloat16", "weight", "matrix", "exact", "0.3"),
    ("gpt2", "float32", "weight", "global", "exact", "0.4"),
    ("gpt2", "float16", "delta", "row", "exact", "0.5"),
    ("gpt2", "float32", "delta", "matrix", "reference", "0.9"),
    ("gpt2", "float32", "delta", "global", "reference", "1"),
]
ALL = [
    *itertools.product(
        ROLES, ("float32", "bfloat16", "float16"), ("weight", "delta"), GROUPS, ROUNDINGS, ("0.04", "0.35")
    )
]


def _compare(
    case: Case,
    files: SimpleNamespace,
    naive: SimpleNamespace,
    out: Path,
    target: str,
    options: dict[str, str],
    method: str,
) -> None:
    before, origin, scored = sides(case, files, target)
    masks = wanted_masks(case, scored, naive, **options, norms=case.norms if method == "antidote" else None)
    given: dict[str, Any] = {"aligned": str(case.aligned)} if target == "delta" else {}
    given |= {"stats": case.stats} if method == "antidote" else {}
    wg.repair(case.model, method=method, target=target, out=out, **given, **options)
    check(out, before, origin, masks, files)


@pytest.mark.parametrize(("family", "dtype", "target", "group", "rounding", "ratio"), SOME)
@pytest.mark.parametrize("method", ["antidote", "magnitude"])
def test_masks_equal_a_stable_sort(
    family: str, dtype: str, target: str, group: str, rounding: str, ratio: str, method: str,
    cases: Callable[[str, str], Case], files: SimpleNamespace, naive: SimpleNamespace, tmp_path: Path,
) -> None:  # fmt: skip
    options = {"group": group, "rounding": rounding, "ratio": ratio}
    _compare(cases(family, dtype), files, naive, tmp_path / "OUT", target, options, method)


@pytest.mark.full
@pytest.mark.parametrize(("family", "dtype", "target", "group", "rounding", "ratio"), ALL)
def test_every_combination(
    family: str, dtype: str, target: str, group: str, rounding: str, ratio: str,
    cases: Callable[[str, str], Case], files: SimpleNamespace, naive: SimpleNamespace, tmp_path: Path,
) -> None:  # fmt: skip
    options = {"group": group, "rounding": rounding, "ratio": ratio}
    _compare(cases(family, dtype), files, naive, tmp_path / "OUT", target, options, "antidote")


def test_the_checkpoints_are_full_of_ties(cases: Callable[[str, str], Case], files: SimpleNamespace) -> None:
    _, _, scored = sides(cases("gpt2", "float32"), files, "delta")
    assert all(len(numpy.unique(numpy.abs(x))) < x.size / 40 for x in scored.values())


@pytest.mark.parametrize("scope", ["q,k", "o", "down, gate"])
@pytest.mark.parametrize("group", GROUPS)
def test_scope_selects_among_its_roles_only(
    scope: str,
    group: str,
    cases: Callable[[str, str], Case],
    files: SimpleNamespace,
    naive: SimpleNamespace,
    tmp_path: Path,
) -> None:
    case = cases("llama", "float32")
    before, origin, scored = sides(case, files, "delta")
    roles = [f".{role.strip()}_proj." for role in scope.split(",")]
    inside = {n: x for n, x in scored.items() if any(role in n for role in roles)}
    assert len(inside) == 2 * len(roles)
    masks = wanted_masks(case, inside, naive, "0.2", group, "exact", case.norms)
    result = wg.repair(
        case.model, aligned=str(case.aligned), stats=case.stats, target="delta", ratio="0.2", group=group, scope=scope,
        out=tmp_path / "OUT",
    )  # fmt: skip
    assert result.manifest is not None
    check(tmp_path / "OUT", before, origin, masks, files)
    kept, after = files.raw(case.model), files.raw(tmp_path / "OUT")
    assert {n for n in kept if kept[n] != after[n]} <= set(inside)


def test_a_scope_that_is_nowhere_is_refused(cases: Callable[[str, str], Case], line: Any, tmp_path: Path) -> None:
    case = cases("gpt2", "float32")
    for scope in ("q,k", "experts", ","):
        code, said = line("repair", case.model, "--stats", case.stats, "--scope", scope, "-o", tmp_path / "OUT")
        assert code == 2 and "--scope" in said and "qkv" in said
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize(("family", "group", "rounding"), [
    ("llama", "row", "exact"), ("llama", "matrix", "reference"), ("gpt2", "row", "reference"), ("gpt2", "matrix", "exact"),
])  # fmt: skip
@pytest.mark.parametrize("target", ["weight", "delta"])
def test_utility_is_a_set_difference(
    family: str, group: str, rounding: str, target: str, cases: Callable[[str, str], Case], data: Mapping[str, Path],
    files: SimpleNamespace, naive: SimpleNamespace, tmp_path: Path,
) -> None:  # fmt: skip
    """The top 0.3 of the harmful score less the top 0.4 of the score on harmless data."""
    case = cases(family, "float32")
    before, origin, scored = sides(case, files, target)
    utility = wg.stats(case.model, data=str(data["benign"]), threads=1)
    norms = {n: numpy.sqrt(s / utility.tokens).astype(numpy.float32) for n, s in utility.sums.items()}
    harmful = wanted_masks(case, scored, naive, "0.3", group, rounding, case.norms)
    useful = wanted_masks(case, scored, naive, "0.4", group, rounding, norms)
    masks = {n: harmful[n] & ~useful[n] for n in harmful}
    assert 0 < sum(m.sum() for m in masks.values()) < sum(m.sum() for m in harmful.values())
    given = {"aligned": str(case.aligned)} if target == "delta" else {}
    wg.repair(
        case.model, stats=case.stats, utility=str(data["benign"]), utility_ratio="0.4", ratio="0.3", target=target,
        group=group, rounding=rounding, threads=1, out=tmp_path / "OUT", **given,
    )  # fmt: skip
    check(tmp_path / "OUT", before, origin, masks, files)


def test_reference_never_takes_none_and_exact_may(
    cases: Callable[[str, str], Case], tmp_path: Path, line: Any, naive: SimpleNamespace
) -> None:
    case = cases("llama", "float32")
    common = ["repair", case.model, "--stats", case.stats, "--target", "weight", "--group", "row", "--ratio", "0.001"]
    code, said = line(*common, "--rounding", "exact", "-o", tmp_path / "OUT")
    assert code == 2 and "not one entry" in said and not (tmp_path / "OUT").exists()
    result = wg.repair(
        case.model, stats=case.stats, target="weight", group="row", ratio="0.001", rounding="reference", dry_run=True
    )
    assert {edit.k for edit in result.plan.edits.values()} == {1} == {naive.count("0.001", 16, "reference")}


@pytest.mark.parametrize("size", [10, 16, 24, 1000])
@pytest.mark.parametrize(
    "ratio", ["0", "0.05", "0.1", "0.15", "0.25", "0.35", "0.45", "0.5", "0.55", "0.65", "0.95", "1"]
)
def test_counts(ratio: str, size: int, naive: SimpleNamespace) -> None:
    """Among them 0.15 * 10, 0.35 * 10 and the like, which binary floating point puts below the half."""
    from decimal import Decimal

    from weightguard.statistics.selection import count

    for rounding in ROUNDINGS:
        assert count(Decimal(ratio), size, rounding) == naive.count(ratio, size, rounding)


@pytest.fixture
def large(checkpoint: Build, tmp_path: Path, files: SimpleNamespace) -> Case:
    """Matrices of more than one tile of the kernels and enough entries for torch to use a second thread."""
    sizes = {"hidden_size": 512, "intermediate_size": 520, "num_hidden_layers": 1, "num_attention_heads": 8}
    model, aligned = (checkpoint("llama", "bfloat16", kind=kind, steps=8, **sizes) for kind in ("tuned", "aligned"))
    return Case(model, aligned, tmp_path / "S", write_statistics(tmp_path / "S", files.tensors(model), False), False)


@pytest.mark.parametrize(("target", "group"), [("delta", "row"), ("weight", "matrix"), ("delta", "global")])
def test_the_same_bytes_for_one_thread_and_two_and_twice(
    target: str, group: str, large: Case, files: SimpleNamespace, naive: SimpleNamespace, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "scope": "o,gate,down",
        "target": target,
        "group": group,
        "ratio": "0.3",
        "stats": large.stats,
    }
    given |= {"aligned": str(large.aligned)} if target == "delta" else {}
    for run, threads in enumerate((1, 2, 2)):
        with torch_threads(threads):
            wg.repair(large.model, out=tmp_path / str(run), threads=threads, **given)
    found = [files.digests(tmp_path / str(run)) for run in range(3)]
    assert found[0] == found[1] == found[2] and {"weightguard.json", "README.md"} <= set(found[0])
    tuned, origin, scored = sides(large, files, target)
    inside = {n: x for n, x in scored.items() if any(role in n for role in ("o_proj", "gate", "down"))}
    masks = wanted_masks(large, inside, naive, "0.3", group, "exact", large.norms)
    check(tmp_path / "0", tuned, origin, masks, files)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_two_runs_from_the_data_are_the_same_bytes(
    cases: Callable[[str, str], Case], data: Mapping[str, Path], files: SimpleNamespace, tmp_path: Path
) -> None:
    case = cases("llama", "float32")
    for out in ("one", "two"):
        wg.repair(case.model, harmful=str(data["harmful"]), aligned=str(case.aligned), threads=2, out=tmp_path / out)
    assert files.digests(tmp_path / "one") == files.digests(tmp_path / "two")
