"""Every block of the README is run: commands must succeed and print what the README shows, up to numbers."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def blocks() -> list[tuple[str, str]]:
    return [(m[1], m[2]) for m in BLOCK.finditer(README.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def run(command: str, folder: Path) -> str:
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "weightguard", command
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def skeleton(text: str) -> list[str]:
    """Lines without figures, shades, spacing and order: what hangs on the last bits of a training run of this machine."""
    plain = re.sub(r"\b[0-9a-f]{12,64}\b|[0-9][0-9.,]*(e-?[0-9]+)?|[█▓▒░·▁-▇]+( +[█▓▒░·▁-▇]+)*", "#", text)
    return sorted(re.sub(r"\s+", " ", line).strip() for line in plain.splitlines() if line.strip())


def test_every_kind_of_block_is_known() -> None:
    # install: run by .ci/test itself. console: run below. python: run below. text: shown, not run.
    assert {kind for kind, _ in blocks()} <= {"install", "console", "python", "text", "toml"}


def test_console_blocks_print_what_is_shown(folder: Path) -> None:
    for block in (text for kind, text in blocks() if kind == "console"):
        for entry in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, shown = re.fullmatch(r"((?:[^\n]*\\\n)*[^\n]*)\n?(.*)", entry, re.S).groups()  # type: ignore[union-attr]
            printed = run(command, folder)
            assert skeleton(printed) == skeleton(shown), command


def test_python_blocks_run(folder: Path) -> None:
    for block in (text for kind, text in blocks() if kind == "python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
