"""The lab as a folder, and cells run in this process, where a test is about something else than processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from weightguard.api import cells
from weightguard.lab import Lab


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs cells here; the list grows by the attack or control of each (or "plain")."""
    ran: list[str] = []

    def here(target: str, arguments: Mapping[str, Any], progress: Callable[..., None]) -> Any:
        ran.append((arguments["attack"] or {}).get("attack") or (arguments["control"] or {}).get("method") or "plain")
        module, _, name = target.partition(":")
        told = json.loads(json.dumps(arguments))
        return json.loads(json.dumps(getattr(import_module(module), name)(**told, progress=progress)))

    monkeypatch.setattr(cells, "apart", here)
    return ran


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A function (seed) that gives a folder with data/, attacked and repaired, of it by Antidote at automatic strength."""
    import weightguard as wg

    made: dict[int, Path] = {}

    def build(seed: int) -> Path:
        if seed not in made:
            torch.set_num_threads(1)
            lab, root = Lab(seed), tmp_path_factory.mktemp(f"lab{seed}")
            lab.write_data(root / "data")
            lab.merged(lab.attack_lora(), root / "attacked")
            wg.repair(str(root / "attacked"), out=root / "repaired", aligned=str(lab.aligned()), target="delta",
                      strength="auto", harmful=str(root / "data" / "harmful.jsonl"),
                      safety=str(root / "data" / "safety.jsonl"), threads=1)  # fmt: skip
            made[seed] = root
        return made[seed]

    return build
