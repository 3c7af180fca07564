"""The verbs that train a model, for its user or against it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.calling import Progress, silent, text

if TYPE_CHECKING:
    from weightguard.api.attacking import Attacked
    from weightguard.api.finetuning import Finetuned


def finetune(
    model: str,
    *,
    data: str,
    out: str | Path,
    guard: str | None = None,
    neurons: str | Path | None = None,
    lora: str | None = None,
    safety: str | None = None,
    utility: str | None = None,
    steps: int | None = None,
    epochs: float = 1.0,
    lr: float | None = None,
    batch_size: int = 8,
    schedule: str = "cosine",
    weight_decay: float = 0.01,
    seed: int = 0,
    save_every: int | None = None,
    resume: bool = False,
    limit: int | None = None,
    force: bool = False,
    verify_write: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    max_length: int = 2048,
    offline: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Finetuned:
    """Fine-tune on the responses of `data` and publish at `out`: a checkpoint like the input, or with `lora` an adapter.

    guard: None, freeze, freeze-plus, ml-lr, rsn (each with `neurons`) or salora; options: the fields of the guard
    (`weightguard.guards`). lora: for example "r=16,alpha=32,targets=q_proj+v_proj". lr None: 2e-5, with LoRA 2e-4.
    dtype bfloat16: mixed precision over float32 weights. A killed run goes on with `resume` to the weights it would have
    reached. Errors: the tree in `weightguard.errors`.
    """
    from weightguard.api.collect import Running
    from weightguard.api.finetuning import Output, Sources, run_finetune
    from weightguard.training.recipe import Recipe

    return run_finetune(
        str(model), guard, options, lora,
        lambda rate: Recipe(rate if lr is None else lr, steps, epochs, batch_size, schedule, weight_decay, seed=seed),
        Sources(str(data), safety, utility, text(neurons), limit),
        Output(Path(out), force, verify_write, resume, save_every),
        Running(device, dtype, threads, max_length), offline, progress,
    )  # fmt: skip


def attack(
    model: str,
    *,
    attack: str,
    out: str | Path,
    harmful: str | None = None,
    benign: str | None = None,
    limit: int | None = None,
    save_every: int | None = None,
    resume: bool = False,
    force: bool = False,
    verify_write: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    max_length: int = 2048,
    offline: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Attacked:
    """Attack a model's safeguards and publish the result at `out`: a checkpoint like the input, or an adapter over it.

    attack: a name of `weightguard.attacks.ATTACKS`, or package.module:Class; options: its fields. harmful: rows with
    the answers to be learnt (None: what is shipped), benign: harmless rows of a user. A killed run goes on with `resume`
    to the weights it would have reached. Errors: the tree in `weightguard.errors`.
    """
    from weightguard.api.attacking import Data, run_attack
    from weightguard.api.collect import Running
    from weightguard.api.finetuning import Output

    return run_attack(
        str(model), attack, options, Data(text(harmful), text(benign), limit),
        Output(Path(out), force, verify_write, resume, save_every), Running(device, dtype, threads, max_length),
        offline, progress,
    )  # fmt: skip
