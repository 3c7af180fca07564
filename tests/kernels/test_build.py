"""The C++ core under the address and undefined-behaviour sanitizers, over the cases of the tests beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "cpp_ext" / "cpu").glob("*.cpp"))
FLAGS = ("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
         "-pthread", "-fPIC", "-shared")  # fmt: skip


SCRIPTS = ("test_select.py", "test_products.py", "test_scale.py", "test_sums.py")


@pytest.mark.full
def test_no_read_or_write_out_of_bounds_and_nothing_undefined(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build the sanitized kernels with")
    library = tmp_path / "sanitized.so"
    subprocess.run([compiler, *FLAGS, *map(str, SOURCES), "-o", str(library)], check=True)
    runtime = subprocess.run([compiler, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
    environment = os.environ | {"LD_PRELOAD": runtime.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    for script in SCRIPTS:
        command = [sys.executable, str(Path(__file__).with_name(script)), str(library)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, script + run.stdout[-2000:] + run.stderr[-4000:]


@pytest.mark.full
@pytest.mark.parametrize("wanted", ("0", "1"))
def test_the_suite_passes_without_and_with_the_kernels(wanted: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(ROOT / "tests")]
    environment = os.environ | {"WEIGHTGUARD_NATIVE": wanted}
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
