"""What is said of MODEL+ADAPTER before anything is done with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from weightguard.api.subject import open_subject

SAID = "the adapter's config names another base than the model before the +"


@pytest.mark.parametrize(
    "name, said",
    [("org/other", True), ("./other", True), ("org/base@abc", False), ("base", False), (None, False), (1, False)],
)
def test_an_adapter_of_another_base_is_told(
    name: object, said: bool, checkpoint: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(checkpoint("llama"), tmp_path / "base"))
    over = Path(shutil.copytree(adapter(checkpoint("llama"), target_modules=["q_proj"]), tmp_path / "adapter"))
    config = json.loads((over / "adapter_config.json").read_text())
    (over / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))
    assert (SAID in open_subject(f"{base}+{over}").notes) is said


def test_the_base_under_another_name_is_no_other_base(
    checkpoint: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(checkpoint("llama"))
    over = adapter(checkpoint("llama"), target_modules=["q_proj"])
    assert SAID not in open_subject(f"{tmp_path / 'link'}+{over}").notes
