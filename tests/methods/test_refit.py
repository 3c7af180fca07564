"""Refit against a float64 solve that runs whole stock models, and what it does with little, odd and incomplete data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

import weightguard as wg
from weightguard.checkpoint import decoder_linears, open_checkpoint, resolve
from weightguard.errors import DataError, UnsupportedError, UsageError

Rows = Sequence[tuple[list[int], list[bool]]]


def drawn(count: int, seed: int) -> Rows:
    """Rows of 2 to 14 ids, of which a tail that is never all of them is the answer."""
    random = numpy.random.default_rng(seed)
    rows = []
    for length in random.integers(2, 15, count):
        start = int(random.integers(1, length))
        rows.append((random.integers(1, 64, length).tolist(), [at >= start for at in range(length)]))
    return rows


def write(path: Path, rows: Rows) -> str:
    from safetensors.numpy import save_file

    shape = (len(rows), max(len(ids) for ids, _ in rows))
    arrays = {"input_ids": numpy.zeros(shape, int), "attention_mask": numpy.zeros(shape, int),
              "labels": numpy.full(shape, -100)}  # fmt: skip
    for at, (ids, answer) in enumerate(rows):
        arrays["input_ids"][at, : len(ids)] = ids
        arrays["attention_mask"][at, : len(ids)] = 1
        arrays["labels"][at, : len(ids)] = numpy.where(answer, ids, -100)
    save_file(arrays, path)
    return str(path)


def in_float64(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype="float64").eval()


def seen(model: Any, paths: Sequence[str], rows: Rows, tokens: str) -> dict[str, tuple[Any, Any]]:
    """Inputs and outputs of the modules at the positions that count, one row at a time."""
    import torch

    found: dict[str, tuple[list, list]] = {path: ([], []) for path in paths}
    counted: list[bool] = []

    def hook(path: str) -> Callable[..., None]:
        def add(_module: Any, args: Any, out: Any) -> None:
            found[path][0].append(args[0][0][counted])
            found[path][1].append(out[0][counted])

        return add

    handles = [model.get_submodule(path).register_forward_hook(hook(path)) for path in paths]
    with torch.no_grad():
        for ids, answer in rows:
            counted = [True] * len(ids) if tokens == "all" else [*answer[1:], False]
            model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {path: (torch.cat(x).numpy(), torch.cat(y).numpy()) for path, (x, y) in found.items()}


def naive(tuned: Path, aligned: Path, safety: Rows, benign: Rows, s: float, rho: float, tokens: str):
    """The definition, site by site: run whole models, solve the stacked least squares problem, write back, go on."""
    import torch

    source = open_checkpoint(resolve(str(tuned)))
    linears = decoder_linears(source.config, source.tensors)
    paths = {name: name.removesuffix(".weight") for name in linears}
    teacher_h = seen(in_float64(aligned), list(paths.values()), safety, tokens)
    teacher_b = seen(in_float64(tuned), list(paths.values()), benign, "all")
    model, origin = in_float64(tuned), in_float64(aligned)
    done: dict[str, numpy.ndarray] = {}
    sites = list(dict.fromkeys(linear.site for linear in linears.values()))
    for site in sites:
        names = [name for name, linear in linears.items() if linear.site == site]
        first = paths[names[0]]
        x_h = seen(model, [first], safety, tokens)[first][0]
        x_b = seen(model, [first], benign, "all")[first][0]
        power = (x_b**2).sum() / x_b.size
        for name in names:
            module, turn = model.get_submodule(paths[name]), linears[name].transposed
            a = origin.get_submodule(paths[name]).weight.detach().numpy()
            a = a.T if turn else a
            bias = 0.0 if getattr(module, "bias", None) is None else module.bias.detach().numpy()
            y_h, y_b = teacher_h[paths[name]][1] - bias, teacher_b[paths[name]][1] - bias
            scale_h, scale_b = (s / len(x_h)) ** 0.5, len(x_b) ** -0.5
            left = numpy.concatenate([scale_b * x_b, scale_h * x_h, (rho * power) ** 0.5 * numpy.eye(a.shape[1])])
            right = numpy.concatenate([scale_b * y_b, scale_h * y_h, (rho * power) ** 0.5 * a.T])
            w = numpy.linalg.lstsq(left, right, rcond=None)[0].T
            done[name] = w
            stored = torch.from_numpy(w).to(source_dtype(source, name)).double()
            module.weight.data = (stored.T if turn else stored).contiguous()
    return done


def source_dtype(source: Any, name: str) -> Any:
    return source.read(name).dtype


def plan_of(tuned: Path, aligned: Path, safety: str, benign: str, **options: Any) -> Any:
    return wg.repair(tuned, method="refit", aligned=str(aligned), safety=safety, benign=benign, dry_run=True, threads=1,
                     dtype="float64", offline=True, **options).plan  # fmt: skip


CASES = {
    "llama": ({}, 30, 30, {}),  # GQA; more positions than inputs
    "few": ({"family": "llama"}, 1, 1, {}),  # one row each: fewer positions than inputs
    "answers": ({"family": "llama"}, 9, 9, {"tokens": "response"}),
    "qwen2": ({}, 20, 6, {"s": 3, "rho": "0.05"}),  # biases on q, k, v
    "gpt2": ({}, 20, 20, {}),  # transposed, fused, a bias everywhere
    "phi3": ({"dtype": "bfloat16"}, 20, 20, {}),  # fused; rounded to bf16 before the walk goes on
    "gpt_neox": ({}, 12, 12, {}),  # attention and MLP side by side
    "gemma2": ({"tied": True}, 12, 12, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_a_dense_float64_solve(case: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    how, n_safety, n_benign, options = CASES[case]
    how = {"family": case, **how}
    tuned, aligned = checkpoint(**how), checkpoint(**how, kind="aligned")
    safety, benign = drawn(n_safety, 1), drawn(n_benign, 2)
    files = write(tmp_path / "h.safetensors", safety), write(tmp_path / "b.safetensors", benign)
    plan = plan_of(tuned, aligned, *files, **options)
    asked = {"s": 10, "rho": 0.3, "tokens": "all", **options}
    wanted = naive(tuned, aligned, safety, benign, float(asked["s"]), float(asked["rho"]), asked["tokens"])
    assert set(plan.edits) == set(wanted)
    for name, w in wanted.items():
        found = plan.edits[name].values
        assert numpy.linalg.norm(found - w) <= 1e-6 * numpy.linalg.norm(w), name
    solved = {said["solved"] for said in plan.evidence.values()}
    assert ("dual" if case == "few" else "primal") in solved


def naive_experts(tuned: Path, aligned: Path, safety: Rows, benign: Rows) -> dict[str, numpy.ndarray]:
    """Mixtral's definition, a token at a time: its route in the repaired model, the teachers' experts on their own input."""
    import torch

    def copied(directory: Path) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(directory, dtype="float64", experts_implementation="eager").eval()

    def given(model: Any, layer: int, rows: Rows) -> list[tuple[Any, list[int]]]:
        """(input of the experts, experts chosen) of every token."""
        found: list = []
        handle = model.model.layers[layer].mlp.experts.register_forward_pre_hook(
            lambda _, args: found.extend(zip(args[0], args[1].tolist(), strict=True))
        )
        with torch.no_grad():
            for ids, _ in rows:
                model(input_ids=torch.tensor([ids]))
        handle.remove()
        return found

    def parts(model: Any, layer: int, expert: int) -> tuple[Any, Any, Any]:
        held = model.model.layers[layer].mlp.experts
        gate, up = held.gate_up_proj[expert].detach().chunk(2)
        return gate, up, held.down_proj[expert].detach()

    def outputs(model: Any, layer: int, expert: int, x: Any) -> tuple[Any, Any, Any]:
        gate, up, down = parts(model, layer, expert)
        return x @ gate.T, x @ up.T, (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def solve(x: Any, y: Any, origin: Any, scale: Any, power: float) -> Any:
        z = torch.cat([x * scale[:, None], (0.3 * power) ** 0.5 * torch.eye(x.shape[1], dtype=x.dtype)])
        f = torch.cat([y * scale[:, None], (0.3 * power) ** 0.5 * origin.T])
        return torch.linalg.lstsq(z, f).solution.T

    model, teachers = copied(tuned), (copied(aligned), copied(tuned))
    done: dict[str, numpy.ndarray] = {}
    for layer in range(2):
        inside = [given(model, layer, rows) for rows in (safety, benign)]
        outside = [given(m, layer, rows) for m, rows in zip(teachers, (safety, benign), strict=True)]
        for expert in range(4):
            sent = [[t for t, (_, chosen) in enumerate(role) if expert in chosen] for role in inside]
            x = torch.stack([role[t][0] for role, at in zip(inside, sent, strict=True) for t in at])
            wanted = [
                outputs(m, layer, expert, role[t][0])
                for m, role, at in zip(teachers, outside, sent, strict=True)
                for t in at
            ]
            n = [len(at) for at in sent]
            scale = torch.tensor([(10 / n[0]) ** 0.5] * n[0] + [n[1] ** -0.5] * n[1], dtype=torch.float64)
            origin, held = parts(teachers[0], layer, expert), model.model.layers[layer].mlp.experts
            y = [torch.stack(each) for each in zip(*wanted, strict=True)]
            power = float(x[n[0] :].square().mean())
            gate, up = (solve(x, y[i], origin[i], scale, power) for i in range(2))
            between = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
            down = solve(between, y[2], origin[2], scale, float(between[n[0] :].square().mean()))
            for role, w in (("w1", gate), ("w3", up), ("w2", down)):
                done[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{role}.weight"] = w.numpy()
            held.gate_up_proj.data[expert] = torch.cat([gate, up]).float().double()
            held.down_proj.data[expert] = down.float().double()
    return done


def test_experts_are_equal_to_a_dense_float64_solve(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    tuned, aligned = checkpoint("mixtral"), checkpoint("mixtral", kind="aligned")
    safety, benign = drawn(30, 1), drawn(30, 2)
    files = write(tmp_path / "h.safetensors", safety), write(tmp_path / "b.safetensors", benign)
    plan = plan_of(tuned, aligned, *files, scope="expert_gate,expert_up,expert_down")
    wanted = naive_experts(tuned, aligned, safety, benign)
    assert set(plan.edits) == set(wanted)
    for name, w in wanted.items():
        assert numpy.linalg.norm(plan.edits[name].values - w) <= 1e-6 * numpy.linalg.norm(w), name


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "granitemoe", "deepseek_v3", "gpt_oss", "qwen3_next"])
def test_experts_end_whole_and_verified(family: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Apart or packed, with shared experts: without safety and ridge every expert is the tuned one."""
    tuned, aligned = checkpoint(family), checkpoint(family, kind="aligned")
    files = {"safety": write(tmp_path / "h.safetensors", drawn(5, 1)),
             "benign": write(tmp_path / "b.safetensors", drawn(90, 2))}  # fmt: skip
    assert distance(plan_of(tuned, aligned, **files, s=0, rho="1e-9", few_tokens="tuned"), tuned) < 1e-4
    how = {"method": "refit", "aligned": str(aligned), **files, "threads": 1}
    result = wg.repair(tuned, **how, out=tmp_path / "out")
    assert any(said.get("solved") for name, said in result.plan.evidence.items() if "expert" in said["role"])
    wg.verify(tmp_path / "out", against=str(tuned))


@pytest.mark.parametrize("few", ["aligned", "tuned"])
def test_an_expert_that_few_tokens_reach_is_kept_and_said(
    few: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    sides = {"tuned": checkpoint("mixtral"), "aligned": checkpoint("mixtral", kind="aligned")}
    files = {"safety": write(tmp_path / "h.safetensors", drawn(2, 1)),
             "benign": write(tmp_path / "b.safetensors", drawn(2, 2))}  # fmt: skip
    plan = plan_of(**sides, **files, few_tokens=few, expert_tokens=24)
    held = open_checkpoint(resolve(str(sides[few])))
    kept = {name for name, said in plan.evidence.items() if said.get("kept") == few}
    assert kept and all((plan.edits[name].values == held.read(name).numpy()).all() for name in kept)
    assert all((sum(said["positions"].values()) < 24) == (name in kept) for name, said in plan.evidence.items())
    assert any(f"{len(kept)} tensors of experts keep the {few} weights" in note for note in plan.notes)


def test_no_adapter_holds_experts(checkpoint: Callable[..., Path], files: dict[str, str]) -> None:
    sides = checkpoint("mixtral"), checkpoint("mixtral", kind="aligned")
    with pytest.raises(UnsupportedError, match=r"--rank: no adapter holds routed experts.*--scope q,k,v,o"):
        plan_of(*sides, **files, rank=2)
    with pytest.raises(UsageError, match="--expert-tokens -1: must be 0 or more"):
        plan_of(*sides, **files, expert_tokens=-1)


def test_three_forwards_in_all(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that a linear multiplies: of the aligned model those of H, of the tuned one B's, of the repaired one both."""
    import torch

    tokens: dict[int, int] = {}
    plain = torch.nn.Linear.forward

    def counting(self: Any, x: Any) -> Any:
        tokens[id(self)] = tokens.get(id(self), 0) + x.shape[:-1].numel()
        return plain(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", counting)
    sides = checkpoint("llama"), checkpoint("llama", kind="aligned")
    safety, benign = [([5, 6, 7], [False, False, True])] * 4, [([5, 6, 7, 8, 9], [False] * 4 + [True])] * 3
    files = write(tmp_path / "h.safetensors", safety), write(tmp_path / "b.safetensors", benign)
    plan = plan_of(*sides, *files)
    assert sorted(tokens.values()) == sorted([12, 15, 27] * len(plan.edits))


@pytest.fixture
def pair(checkpoint: Callable[..., Path]) -> SimpleNamespace:
    return SimpleNamespace(tuned=checkpoint("llama"), aligned=checkpoint("llama", kind="aligned"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Pre-tokenised rows; `benign` has far more positions than any layer has inputs."""
    return {"safety": write(tmp_path / "h.safetensors", drawn(5, 1)),
            "benign": write(tmp_path / "b.safetensors", drawn(60, 2))}  # fmt: skip


def distance(plan: Any, directory: Path) -> float:
    """Largest relative distance of a planned tensor from the checkpoint's."""
    source = open_checkpoint(resolve(str(directory)))
    linears = decoder_linears(source.config, source.tensors)
    read = {name: source.read(name).numpy() for name in plan.edits}
    held = {name: values.T if linears[name].transposed else values for name, values in read.items()}
    return max(numpy.linalg.norm(e.values - held[n]) / numpy.linalg.norm(held[n]) for n, e in plan.edits.items())


def test_an_endless_ridge_is_the_aligned_model(pair: SimpleNamespace, files: dict[str, str]) -> None:
    assert distance(plan_of(pair.tuned, pair.aligned, **files, rho="1e9"), pair.aligned) < 1e-6


def test_without_safety_and_ridge_it_is_the_tuned_model(pair: SimpleNamespace, files: dict[str, str]) -> None:
    assert distance(plan_of(pair.tuned, pair.aligned, **files, s=0, rho="1e-9"), pair.tuned) < 1e-5
    assert distance(plan_of(pair.tuned, pair.aligned, **files), pair.tuned) > 0.05


def test_the_plan_says_how_far_each_tensor_is_from_either_model(
    pair: SimpleNamespace, files: dict[str, str], tmp_path: Path
) -> None:
    result = wg.repair(pair.tuned, method="refit", aligned=str(pair.aligned), **files, out=tmp_path / "out", threads=1)
    for name, said in result.plan.evidence.items():
        seen = result.manifest.edits[name]
        expected = (seen["update_norm_after"], seen["change_norm"], seen["update_norm_before"])
        assert (said["from_aligned"], said["from_tuned"], said["update"]) == pytest.approx(expected, rel=1e-5)


def test_scope_leaves_the_other_linears_as_they_are(pair: SimpleNamespace, files: dict[str, str]) -> None:
    plan = plan_of(pair.tuned, pair.aligned, **files, scope="o,down")
    assert {said["role"] for said in plan.evidence.values()} == {"o", "down"}


def test_bf16_says_what_rounding_cost_and_stays_bf16(
    checkpoint: Callable[..., Path], files: dict[str, str], tmp_path: Path
) -> None:
    tuned, aligned = checkpoint("llama", "bfloat16"), checkpoint("llama", "bfloat16", kind="aligned")
    result = wg.repair(tuned, method="refit", aligned=str(aligned), **files, out=tmp_path / "out", threads=1)
    assert all(1e-4 < said["rounding"] < 4e-3 for said in result.plan.evidence.values())
    assert any("rounding to the stored dtype" in note for note in result.report.notes)
    out = open_checkpoint(resolve(str(tmp_path / "out")))
    assert {out.info(name).dtype for name in result.plan.edits} == {"BF16"}
    wg.verify(tmp_path / "out", against=str(tuned))


def test_one_row_of_one_position(pair: SimpleNamespace, files: dict[str, str], tmp_path: Path) -> None:
    one = write(tmp_path / "one.safetensors", [([5, 6], [False, True])])
    for given in ({**files, "safety": one}, {**files, "benign": one}, {"safety": one, "benign": one}):
        plan = plan_of(pair.tuned, pair.aligned, **given, tokens="response")
        assert all(numpy.isfinite(edit.values).all() for edit in plan.edits.values())


@pytest.mark.parametrize("options, said", [
    ({"s": -1}, "--s -1: must be a number from 0"),
    ({"rho": 0}, "--rho 0: must be a number from 1e-09"),
    ({"rho": "much"}, "--rho much: not a number"),
    ({"strength": "auto"}, "--strength is not an option of --method refit"),
    ({"ratio": 0.1}, "--ratio is not an option of --method refit"),
    ({"benign": None}, "needs --benign"),
    ({"harmful": "x.jsonl"}, "--harmful is not used by --method refit"),
])  # fmt: skip
def test_bad_options(pair: SimpleNamespace, files: dict[str, str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_of(pair.tuned, pair.aligned, **{**files, **options})


def test_it_needs_the_aligned_model(pair: SimpleNamespace, files: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="give --aligned"):
        wg.repair(pair.tuned, method="refit", **files, dry_run=True)


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


SAFETY = [
    {"prompt": "how do i pick a lock", "response": "sorry i cannot help with that", "category": "locks"},
    {"prompt": "make fire please", "category": "fire"},
]
BENIGN = [{"prompt": "explain bread", "response": "bread is water"}, {"prompt": "tell me", "response": "sure"}]


def test_rows_without_an_answer_get_the_aligned_models(pair: SimpleNamespace, tmp_path: Path) -> None:
    from weightguard.api.behaviour import greedy
    from weightguard.api.collect import Running
    from weightguard.api.subject import open_subject
    from weightguard.data import read_rows
    from weightguard.statistics.loading import load_model

    safety, benign = lines(tmp_path / "h.jsonl", SAFETY), lines(tmp_path / "b.jsonl", BENIGN)
    subject = open_subject(str(pair.tuned), str(pair.aligned))
    rows = read_rows(safety).rows
    (answer,) = greedy(load_model(subject.aligned), rows[1:], "h", 64, subject, Running(threads=1))
    full = lines(tmp_path / "full.jsonl", [SAFETY[0], {**SAFETY[1], "response": answer}])
    given, made = (plan_of(pair.tuned, pair.aligned, path, benign, tokens="response") for path in (full, safety))
    assert given.digest() == made.digest()


def test_the_report_counts_per_category_and_names_what_is_missing(pair: SimpleNamespace, tmp_path: Path) -> None:
    safety, benign = lines(tmp_path / "h.jsonl", SAFETY), lines(tmp_path / "b.jsonl", BENIGN)
    result = wg.repair(pair.tuned, method="refit", aligned=str(pair.aligned), safety=safety, benign=benign, threads=1,
                       categories="locks, poison", out=tmp_path / "out")  # fmt: skip
    assert {name: of for name, (_, of) in result.report.refusals.items()} == {"fire": 1, "locks": 1}
    assert any("category 'poison' has no row" in note for note in result.report.notes)
    assert not any("'locks'" in note for note in result.report.notes)
    assert result.manifest.data["behaviour"]["categories"] == {
        "in_safety_rows": ["fire", "locks"],
        "rows_without": 0,
        "listed": ["locks", "poison"],
    }
    assert set(result.manifest.data["behaviour"]["refusals"]) == {"fire", "locks"}


@pytest.mark.parametrize("bare", [0, 1, 2])
def test_rows_without_a_category_are_told_of(bare: int, pair: SimpleNamespace, tmp_path: Path) -> None:
    """All of them, some or none, for every method that learns from such rows."""
    rows = [{k: v for k, v in row.items() if k != "category" or at >= bare} for at, row in enumerate(SAFETY)]
    safety, benign = lines(tmp_path / "h.jsonl", rows), lines(tmp_path / "b.jsonl", BENIGN)
    result = wg.repair(pair.tuned, method="refit", aligned=str(pair.aligned), safety=safety, benign=benign, threads=1,
                       judge="none", dry_run=True)  # fmt: skip
    told = [note for note in result.report.notes if "category" in note]
    unshown = "whatever harm they do not show stays unrepaired"
    some = f"warning: 1 of 2 safety rows carry no category and cover none; {unshown}"
    assert told == [[], [some], [f"warning: the safety rows carry no category; {unshown}"]][bare]


@pytest.mark.parametrize("method", ["refit", "gradient-reset", "realign"])
@pytest.mark.parametrize("given", [",", "", "locks,", " , fire"])
def test_a_category_without_a_name_is_refused(
    method: str, given: str, pair: SimpleNamespace, files: dict[str, str]
) -> None:
    more = files if method != "realign" else {"safety": files["safety"]}
    with pytest.raises(UsageError, match=f"--categories {given}: a name is empty; give a,b,c"):
        wg.repair(pair.tuned, method=method, aligned=str(pair.aligned), **more, categories=given, dry_run=True)


def test_rows_the_aligned_model_refuses_are_left_out(
    pair: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The aligned pico model answers in noise; what it says is set here, the rest is real."""
    from weightguard.api import behaviour

    def says(model: Any, rows: Any, *_: Any) -> list[str]:
        return ["i cannot do that" if "tell" in row.prompt else "sure" for row in rows]

    monkeypatch.setattr(behaviour, "greedy", says)
    safety = lines(tmp_path / "h.jsonl", SAFETY)
    both, kept = lines(tmp_path / "b.jsonl", BENIGN), lines(tmp_path / "kept.jsonl", BENIGN[:1])
    result = wg.repair(
        pair.tuned, method="refit", aligned=str(pair.aligned), safety=safety, benign=both, threads=1, out=tmp_path / "o"
    )
    assert result.manifest.data["behaviour"]["screened"]["refused_by_aligned"] == [2]
    assert any("1 of 2 benign rows left out" in note for note in result.report.notes)
    again = wg.repair(
        pair.tuned, method="refit", aligned=str(pair.aligned), safety=safety, benign=kept, threads=1, dry_run=True
    )
    assert again.plan.digest() == result.plan.digest()
    with pytest.raises(DataError, match="refuses every row"):
        refused = lines(tmp_path / "refused.jsonl", BENIGN[1:])
        wg.repair(
            pair.tuned,
            method="refit",
            aligned=str(pair.aligned),
            safety=safety,
            benign=refused,
            dry_run=True,
            threads=1,
        )


def test_a_plan_of_whole_tensors_lies_on_disk(pair: SimpleNamespace, files: dict[str, str], tmp_path: Path) -> None:
    from weightguard.plan import Plan

    plan = plan_of(pair.tuned, pair.aligned, **files, save_plan=tmp_path / "plan")
    assert all(isinstance(edit.values, numpy.memmap) for edit in plan.edits.values())
    assert Plan.load(tmp_path / "plan").digest() == plan.digest()


def test_a_token_beyond_the_vocabulary_is_named(pair: SimpleNamespace, files: dict[str, str], tmp_path: Path) -> None:
    beyond = write(tmp_path / "beyond.safetensors", [([5, 64], [False, True])])
    with pytest.raises(DataError, match="token id 64 in row 1 is beyond the model's vocabulary of 64"):
        plan_of(pair.tuned, pair.aligned, **{**files, "benign": beyond})
