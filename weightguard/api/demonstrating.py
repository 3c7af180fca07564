"""`demo`: the whole story on the lab model, with the controls beside the repair."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from weightguard.api.collect import Running
from weightguard.api.needs import Data
from weightguard.api.repairing import Output, run_repair
from weightguard.checkpoint import strict_json
from weightguard.errors import UndecidedError

if TYPE_CHECKING:
    from weightguard.lab.measure import Measurement

Progress = Callable[[str, int, int], None]
COLUMNS = ("harmful_score", "refusal", "allowed_accuracy", "over_refusal", "finetune_accuracy")
REPAIRS = {
    "antidote": "repaired: antidote",
    "safe-lora": "repaired: safe-lora",
    "random": "control: random entries",
    "magnitude": "control: delta magnitude",
    "scale": "control: uniform scaling",
}


@dataclass(frozen=True)
class Line:
    """One model of the table. `changed`: share of the entries of the decoder linears that differ from the attacked."""

    name: str
    measured: Measurement | None
    strength: str = "-"
    changed: float | None = None


@dataclass(frozen=True)
class Demo:
    """The table, and what is said above and below it."""

    headings: ClassVar[list[str]] = [
        "model", "harmful score", "refusal", "allowed", "over-refusal", "fine-tune", "strength", "changed",
    ]  # fmt: skip
    lines: tuple[Line, ...]
    opening: tuple[str, ...]
    closing: tuple[str, ...]

    def rows(self) -> list[list[str]]:
        return [[line.name, *_figures(line), line.strength, _share(line.changed)] for line in self.lines]

    def as_dict(self) -> dict[str, Any]:
        return {"lines": [dataclasses.asdict(line) for line in self.lines], "notes": [*self.opening, *self.closing]}


def _figures(line: Line) -> list[str]:
    if line.measured is None:
        return ["no strength refuses enough", *[""] * (len(COLUMNS) - 1)]
    return [f"{getattr(line.measured, key):.1f} %" for key in COLUMNS]


def _share(changed: float | None) -> str:
    return "-" if changed is None else f"{100 * changed:.1f} %"


def run_demo(target: Path, seed: int, force: bool, progress: Progress) -> Demo:
    """Build or fetch the lab models, attack, repair, control, measure; everything appears at `target` at the end."""
    from weightguard.lab import Lab
    from weightguard.rewrite import Stage

    lab = Lab(seed)
    with Stage(target, force=force or _is_demo(target)) as stage:
        here = stage.path
        shutil.copytree(lab.base(_training(progress)), here / "base")
        shutil.copytree(lab.aligned(_training(progress)), here / "aligned")
        adapter = lab.attack_lora(0.1, _training(progress))
        lab.merged(adapter, here / "attacked")
        _adapter_over(target.absolute() / "aligned", adapter, here / "adapter")
        lab.write_data(here / "data")
        lines = [Line("aligned", lab.measure(here / "aligned")), Line("attacked", lab.measure(here / "attacked"))]
        for method, name in REPAIRS.items():
            lines.append(_repaired(lab, here, method, name, progress))
        demo = Demo(tuple(lines), _opening(seed), _closing(target))
        (here / "weightguard.json").write_bytes(strict_json.dump({"format": 1, "demo": demo.as_dict()}))
        stage.publish()
    return demo


def _adapter_over(base: Path, adapter: Path, copy: Path) -> None:
    """A copy of an adapter that names `base` as its base."""
    shutil.copytree(adapter, copy)
    config = copy / "adapter_config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(said | {"base_model_name_or_path": str(base)}, indent=2), encoding="utf-8")


def _is_demo(target: Path) -> bool:
    """An earlier demo is made again in its place; anything else there needs --force."""
    said = target / "weightguard.json"
    return said.is_file() and b'"demo"' in said.read_bytes()[:200]


def _training(progress: Progress) -> Callable[[str, int, int, float], None]:
    return lambda stage, done, total, _loss: progress(stage, done, total)


def _repaired(lab: Any, here: Path, method: str, name: str, progress: Progress) -> Line:
    out = here / {"antidote": "repaired", "safe-lora": "repaired-safe-lora"}.get(method, f"control-{method}")
    harmful = str(here / "data" / "harmful.jsonl") if method == "antidote" else None
    unaligned = str(here / "base") if method == "safe-lora" else None
    data = Data(harmful=harmful, unaligned=unaligned, safety=str(here / "data" / "safety.jsonl"))
    try:
        result = run_repair(
            str(here / "attacked"), method, {}, aligned=str(here / "aligned"), strength="auto",
            data=data, output=Output(str(out)),
            running=Running(threads=1), offline=True, progress=lambda stage, i, n: progress(f"{method} {stage}", i, n),
        )  # fmt: skip
    except UndecidedError:
        return Line(name, None)
    found = result.report.calibration
    assert found is not None
    entries = sum(prod(said["shape"]) for said in result.plan.evidence.values())  # the modules left alone among them
    return Line(name, lab.measure(out), str(found.strength), result.report.changes[-1].changed / entries)


def _opening(seed: int) -> tuple[str, ...]:
    return (
        f"weightguard demo, world {seed}: a synthetic language, a model of 198,080 parameters, made-up forbidden objects.",
        "Attack: LoRA fine-tuning on a user's task with 10 % harmful rows. Every repair runs at automatic strength: the",
        "weakest at which 98 % of calibration prompts, disjoint from the evaluation, are refused.",
    )


def _closing(target: Path) -> tuple[str, ...]:
    at = shlex.quote(str(target))
    return (
        "How to read it: delta magnitude and uniform scaling look at no data and are strong controls; where a repair does",
        "not beat them, say so. This is a world in which the user's skill existed before the fine-tuning; it flatters.",
        "",
        f"The checkpoints are in {at}: base (before alignment), aligned, attacked, the attack as an adapter over aligned,",
        "repaired*, control-*. The first repair again, from the attacked one:",
        "",
        f"    weightguard repair {at}/attacked --method antidote --aligned {at}/aligned --harmful {at}/data/harmful.jsonl "
        f"--strength auto --safety {at}/data/safety.jsonl --threads 1 -o {at}-again",
    )
