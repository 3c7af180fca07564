"""The command as a process: what it imports, what becomes of closed and full streams, signals, and odd surroundings."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from weightguard import api
from weightguard.cli import main as program

HEAVY = ["torch", "transformers", "numpy", "peft", "safetensors", "huggingface_hub", "scipy", "yaml", "rich", "pyarrow"]
M = ["repair", "tuned", "--method", "magnitude", "--group", "row", "--ratio", "0.5", "-o", "out"]
WG = [sys.executable, "-m", "weightguard"]
# A repair that says so when it begins to write, and then waits to be interrupted.
SLOW = """
import sys, time
from weightguard.rewrite import output
from weightguard.cli.main import main
def write(out, data):
    print("writing", flush=True)
    time.sleep(60)
output.Output.write = write
sys.exit(main(sys.argv[1:]))
"""


def imported(*arguments: str) -> list[str]:
    code = (
        "import sys, io; from weightguard.cli.main import main; out = sys.stdout; sys.stdout = io.StringIO()\n"
        f"code = main({list(arguments)!r}); shown = sys.stdout.getvalue(); sys.stdout = out\n"
        f"print(code, bool(shown), *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout.split()


@pytest.mark.parametrize(
    "command", ["", "inspect", "stats", "neurons", "repair", "apply", "finetune", "evaluate", "gate", "verify", "demo"]
)
def test_help_imports_nothing_heavy(command: str, place: Any) -> None:
    assert imported(*command.split(), "--help") == ["0", "True"]


def test_help_reads_flags_and_nothing_that_works_on_models(place: Any) -> None:
    code = "import sys; from weightguard.cli.main import main; main(['--help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout.split()
    assert "weightguard.methods" in loaded
    assert not {"weightguard.checkpoint", "weightguard.verdict", "weightguard.plan"} & set(loaded)


def test_headers_are_inspected_without_anything_heavy(place: Any) -> None:
    assert imported("inspect", "tuned", "--no-digests") == ["0", "True"]
    assert imported("inspect", "tuned", "--no-digests", "--format", "json", "--tensors") == ["0", "True"]
    assert "torch" not in imported("inspect", "tuned")


@pytest.mark.parametrize("arguments", [["inspect", "./gone"], ["repair", "tuned"], ["repair", "tuned", "--rank", "1"]])
def test_the_first_mistakes_are_found_without_anything_heavy(arguments: list[str], place: Any) -> None:
    assert imported(*arguments)[1:] == ["False"]


def test_no_arguments_is_help_on_stderr(place: Any) -> None:
    ended = place.process()
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("Usage: weightguard") and "\n  repair " in ended.stderr


def test_no_module_hides_a_verb() -> None:
    """Importing weightguard.api.x sets api.x: a module must not have the name of a function."""
    verbs = ["inspect", "stats", "repair", "apply", "verify", "demo"]
    for found in pkgutil.iter_modules(api.__path__):
        importlib.import_module(f"weightguard.api.{found.name}")
    assert all(callable(getattr(api, verb)) for verb in verbs)


# A command, and then whether the numbers of the standard streams lead to a device or pipe, not to a file of ours.
NUMBERS = """
import os, stat, sys
from weightguard.cli.main import main
code = main(sys.argv[1:])
kinds = [stat.S_IFMT(os.fstat(number).st_mode) for number in (0, 1, 2)]
os._exit(code or 9 * any(kind not in (stat.S_IFCHR, stat.S_IFIFO) for kind in kinds))
"""


def lines(ended: Any) -> list[str]:
    return [line for line in ended.stderr.splitlines() if not line.startswith(("read: ", "write: ", "verify: ", "* "))]


@pytest.mark.parametrize("more", [[], ["--tensors"], ["--format", "json"]])
def test_a_reader_that_goes_away(more: list[str], place: Any) -> None:
    process = subprocess.Popen(
        [*WG, "inspect", "tuned", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(60) == 5
    assert said.splitlines()[-1] == "weightguard: standard output was closed before all of the result was shown"
    assert len([line for line in said.splitlines() if not line.startswith("read: ")]) == 1
    process.stderr.close()


@pytest.mark.parametrize(
    "arguments", [["inspect", "{}/tuned"], ["inspect", "./tuned"], ["repair", "{}/tuned", *M[2:-1], "{}/out"]]
)
def test_a_working_directory_that_is_gone(arguments: list[str], place: Any) -> None:
    (place.root / "gone").mkdir()
    given = [argument.format(place.root) for argument in arguments]
    code = "import os, sys; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(place.root / "gone"), *WG, *given], capture_output=True, text=True, timeout=60
    )
    said = "weightguard: the working directory is gone (No such file or directory); start again in one that is there"
    assert (ended.returncode, ended.stdout, lines(ended)) == (5, "", [said])


def test_a_full_standard_output(place: Any) -> None:
    with open("/dev/full", "w") as full:
        ended = place.process("inspect", "tuned", stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 5 and lines(ended) == ["weightguard: standard output: No space left on device"]


@pytest.mark.parametrize(
    "closed", ["<&- 2>&-", *(pytest.param(one, marks=pytest.mark.full) for one in ("<&-", "2>&-"))]
)
def test_closed_streams(closed: str, place: Any) -> None:
    """A closed stream's number is free: the next file opened gets it, and what is printed must not end up in there."""
    (place / "streams.py").write_text(NUMBERS)
    line = " ".join([sys.executable, "streams.py", *M, closed])
    assert subprocess.run(["sh", "-c", line], capture_output=True, timeout=60).returncode == 0
    assert place.run("verify", "out", "--against", "tuned")[0] == 0


def test_a_closed_standard_output(place: Any) -> None:
    line = " ".join([*WG, *M, "<&- >&-"])
    ended = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    said = "weightguard: standard output is closed; send it to /dev/null where nobody is to read it\n"
    assert (ended.returncode, ended.stderr) == (5, said) and not (place / "out").exists()


@pytest.mark.parametrize("closed", ["2>&-", ">/dev/null 2>&-", "2>/dev/full"])
def test_an_error_that_nobody_hears(closed: str, place: Any) -> None:
    ended = subprocess.run(["sh", "-c", " ".join([*WG, "inspect", "./gone", closed])], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, b"", b"")


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.full), (signal.SIGINT, 130)]
)
def test_a_signal(number: int, code: int, place: Any) -> None:
    line = [sys.executable, "-c", SLOW, *M]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    assert os.path.isdir(".out.weightguard-stage")
    begin = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    word = {143: "terminated", 130: "interrupted"}[code]
    assert (process.returncode, said) == (code, f"weightguard: {word}; no unfinished output is left\n")
    assert time.monotonic() - begin < 5 and not [n for n in os.listdir() if "out" in n and n != "outputs"]


SURROUNDINGS: dict[str, dict[str, str | None]] = {
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C locale": {"LC_ALL": "C", "LANG": "C"},
    "no home": {"HOME": None},
    "a home that cannot be": {"HOME": "/proc/none"},
    "Turkish": {"LC_ALL": "tr_TR.UTF-8"},
    "another hash seed": {"PYTHONHASHSEED": "12345"},
    "another time zone": {"TZ": "Pacific/Chatham"},
    "two threads": {"OMP_NUM_THREADS": "2"},
}


def unicode_model(root: Path) -> None:
    path = root / "größe 模型"
    path.mkdir(exist_ok=True)
    tensors = load_file(root / "tuned" / "model.safetensors")
    save_file({**tensors, "größe 模型 \U0001f600": tensors["model.norm.weight"]}, path / "model.safetensors")
    (path / "config.json").write_bytes((root / "tuned" / "config.json").read_bytes())


@pytest.fixture
def surrounded(place: Any) -> Callable[..., str]:
    """A function that runs a command on a model with Unicode in its name and tensors; its stdout, read as Latin-1."""
    unicode_model(place.root)

    def run(where: str, *arguments: str) -> str:
        changed = {**os.environ, **SURROUNDINGS.get(where, {})}
        environment = {key: value for key, value in changed.items() if value is not None}
        ended = place.process(*arguments, env=environment, encoding="latin-1")
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


@pytest.mark.parametrize("where", SURROUNDINGS)
def test_inspect_in_odd_surroundings(where: str, surrounded: Callable[..., str]) -> None:
    shown = surrounded(where, "inspect", "größe 模型", "--tensors", "--no-digests")
    assert shown.count("\n") > 20 and "Traceback" not in shown
    found = json.loads(surrounded(where, "inspect", "größe 模型", "--no-digests", "--format", "json").encode("latin-1"))
    assert "größe 模型 \U0001f600" in [tensor["name"] for tensor in found["tensors"]] and found["label"] == "größe 模型"


@pytest.mark.full
@pytest.mark.parametrize("where", SURROUNDINGS)
def test_the_same_bytes_in_odd_surroundings(where: str, surrounded: Callable[..., str]) -> None:
    held: list[dict[str, bytes]] = []
    for name in (where, "ordinary"):
        surrounded(name, "repair", "größe 模型", *M[2:-1], name, "--format", "json")
        held.append({path.name: path.read_bytes() for path in Path(name).iterdir()})
    assert held[0] == held[1]


ERRORS: dict[str, tuple[BaseException, int, str]] = {
    "memory": (MemoryError(), 5, "out of memory"),
    "permission": (PermissionError(13, "Permission denied", "/a/b"), 5, "/a/b: Permission denied"),
    "system, unnamed": (OSError(28, "No space left on device"), 5, "No space left on device"),
    "keyboard": (KeyboardInterrupt(), 130, "interrupted; no unfinished output is left"),
    "several lines": (OSError(5, "one\ntwo\r\n\tthree", "a\nb"), 5, "a b: one two three"),
    "escape sequences": (OSError(5, "\x1b[31mred\x07\u202e", None), 5, "\\x1b[31mred\\x07\\x202e"),
    "half a surrogate pair": (OSError(5, "x", "\udcff"), 5, "\\xdcff: x"),
    "a megabyte": (OSError(5, "x" * 1_000_000), 5, "x" * 4000),
}


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("case", ERRORS)
def test_every_ending_is_one_line(case: str, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    error, code, line = ERRORS[case]
    monkeypatch.setattr(api, "inspect", raising(error))
    assert place.run("inspect", "tuned") == (code, "", [f"weightguard: {line}"])


@pytest.mark.parametrize("error", [ValueError("secret\nlines"), RecursionError(), AssertionError(), SystemExit(1)])
def test_an_internal_error_is_one_line_and_a_log(
    error: BaseException, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "inspect", raising(error))
    code, shown, said = place.run("inspect", "tuned")
    begin = f"weightguard: internal error: {type(error).__name__}; please report it with "
    assert (code, shown, len(said)) == (70, "", 1) and said[0].startswith(begin)
    log = Path(said[0].removeprefix(begin))
    assert "Traceback (most recent call last)" in log.read_text()
    log.unlink()


def test_an_internal_error_where_no_log_can_be(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "inspect", raising(ValueError()))
    monkeypatch.setattr(program.tempfile, "NamedTemporaryFile", raising(OSError(30, "Read-only file system")))
    code, _, said = place.run("inspect", "tuned")
    assert code == 70 and said == [
        "weightguard: internal error: ValueError; please report it with its traceback; no log could be written: "
        "Read-only file system"
    ]


def test_main_in_another_thread(place: Any) -> None:
    """Only the main thread may set signal handlers; a program that calls us elsewhere gets its answer all the same."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(program.main(["inspect", "tuned", "--no-digests"])))
    thread.start()
    thread.join()
    assert found == [0]


def test_the_end_of_the_process_is_silent(place: Any) -> None:
    """At exit torch imports modules, which fails with a traceback where memory ran out."""
    code = (
        "import atexit, sys\nfrom weightguard.cli import main as program\n"
        "def fail(): raise MemoryError\natexit.register(fail)\nprogram.cli = None\nprogram.process()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 70 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def lost() -> Exception:
    """What a library makes of memory that ran out in the midst of its work."""
    try:
        raise MemoryError
    except MemoryError as error:
        found = ValueError("could not import x")
        found.__cause__ = error
    return found


@pytest.mark.parametrize(
    "error",
    [
        ImportError("a.so: failed to map segment from shared object"),
        ImportError("a.so: cannot map zero-fill pages"),
        RuntimeError("can't allocate memory"),
        lost(),
    ],
    ids=["shared object", "its zeros", "torch", "wrapped"],
)
def test_memory_that_ran_out_in_a_library_is_said_as_such(error: Exception, place: Any, monkeypatch: Any) -> None:
    from weightguard.errors import CheckpointError
    from weightguard.statistics.loading import _failure

    found = _failure(error, "model: transformers cannot load it")
    assert isinstance(found, MemoryError)
    assert isinstance(_failure(ValueError("bad"), "model: it"), CheckpointError)
    monkeypatch.setattr(api, "inspect", raising(found))
    assert place.run("inspect", "tuned") == (5, "", ["weightguard: out of memory"])
