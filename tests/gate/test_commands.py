"""`gate` and `verify VERDICT` as commands: exit codes, one line for bad input, no torch, and every byte that counts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightguard.checkpoint.digests import file_digests
from weightguard.cli.main import main
from weightguard.measurement import Measurement, Report, Subject, sealed, written

POLICY = 'format = 1\nname = "test"\n[limits.harmful_score]\nmax = 0.1\n'
OUTS = ("verdict.json", "v.sarif", "v.xml", "v.md", "v.html", "v.intoto.json", "v.txt")


class Place:
    """`model`, `policy.toml` and `report.json` in one folder; `run` gives exit code and what was said on stderr."""

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.root, self.capture = root, capture

    def run(self, *arguments: str) -> tuple[int, str]:
        code = main([str(a) for a in arguments])
        said = self.capture.readouterr().err
        return code, "\n".join(line for line in said.splitlines() if not line.startswith(("read:", "verify:")))

    def gate(self, *arguments: str) -> tuple[int, str]:
        return self.run("gate", "model", "--policy", "policy.toml", "--report", "report.json", *arguments)

    def verify(self, *arguments: str) -> tuple[int, str]:
        return self.run("verify", "verdict.json", "--model", "model", *arguments)


@pytest.fixture
def place(
    checkpoint_folder: Path, measurement: Callable[..., Measurement], monkeypatch: Any, capfd: Any
) -> Callable[..., Place]:
    def build(low: float = 0.0, high: float = 0.02, **said: Any) -> Place:
        root = checkpoint_folder.parent
        monkeypatch.chdir(root)
        (root / "policy.toml").write_text(POLICY)
        found = measurement("harmful_score", (low + high) / 2, low, high)
        subject = Subject("model", None, file_digests(checkpoint_folder))
        report = Report(subject, None, (found,), {}, {"seed": 0}, **said)
        (root / "report.json").write_bytes(report.to_bytes())
        return Place(root, capfd)

    return build


@pytest.mark.parametrize(
    ("low", "high", "code", "said"),
    [(0.0, 0.02, 0, ""), (0.5, 0.9, 1, "the gate says no"), (0.0, 0.5, 7, "undecided, which is not a pass")],
)
def test_three_endings(place, low: float, high: float, code: int, said: str) -> None:
    here = place(low, high)
    found, line = here.gate(*[a for out in OUTS for a in ("-o", out)])
    assert found == code and said in line and line.count("\n") == 0
    verdict = json.loads((here.root / "verdict.json").read_bytes())
    assert verdict["verdict"] == {0: "pass", 1: "fail", 7: "undecided"}[code]
    assert all((here.root / out).stat().st_size for out in OUTS)
    assert here.verify()[0] == code  # who verifies a verdict learns what it says


@pytest.mark.parametrize("form", ["human", "json", "sarif", "junit", "markdown", "html", "in-toto"])
def test_every_form_on_standard_output(place, form: str) -> None:
    here = place()
    main(["gate", "model", "--policy", "policy.toml", "--report", "report.json", "--format", form])
    assert "harmful_score" in here.capture.readouterr().out


def test_a_gate_on_a_report_imports_no_torch(place) -> None:
    here = place()
    code = (
        "import sys; from weightguard.cli.main import main\n"
        "done = main(['gate', 'model', '--policy', 'policy.toml', '--report', 'report.json', '-o', 'verdict.json'])\n"
        "again = main(['verify', 'verdict.json', '--model', 'model'])\n"
        "print('|', done, again, [n for n in ('torch', 'transformers', 'peft', 'numpy', 'huggingface_hub') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here.root)
    assert done.stdout.splitlines()[-1] == "| 0 0 []", done.stderr


def test_the_gate_alone_needs_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules)\nimport weightguard.verdict\n"
        "new = {n.partition('.')[0] for n in set(sys.modules) - before}\n"
        "print(sorted(n for n in new if n not in sys.stdlib_module_names and n != 'weightguard'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_same_gate_is_the_same_bytes(place) -> None:
    here = place()
    here.gate(*[a for out in OUTS for a in ("-o", out)])
    first = {out: (here.root / out).read_bytes() for out in OUTS}
    here.gate("--force", *[a for out in OUTS for a in ("-o", out)])
    assert {out: (here.root / out).read_bytes() for out in OUTS} == first


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "extra/notes.txt"])
def test_one_byte_of_any_file_is_noticed(place, name: str) -> None:
    here = place()
    assert here.gate("-o", "verdict.json")[0] == 0
    file = here.root / "model" / name
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    code, line = here.verify()
    assert code == 3 and name in line
    # And the report is about other files now, or the config is none any more.
    assert here.gate("-o", "again.json")[0] == (3 if name == "config.json" else 7)


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_files_that_come_and_go_are_noticed(place, change: str) -> None:
    here = place()
    here.gate("-o", "verdict.json")
    notes = here.root / "model" / "extra" / "notes.txt"
    actions: dict[str, Callable[[], object]] = {
        "added": lambda: (here.root / "model" / "pytorch_model.bin").write_bytes(b"pickle"),
        "removed": notes.unlink,
        "renamed": lambda: notes.rename(notes.with_name("other.txt")),
    }
    actions[change]()
    assert here.verify()[0] == 3


def test_one_byte_of_the_policy_is_noticed(place) -> None:
    here = place()
    here.gate("-o", "verdict.json")
    policy = here.root / "policy.toml"
    policy.write_text(POLICY + "\n")
    code, line = here.verify()
    assert code == 3 and "another policy" in line
    (here.root / "kept.toml").write_text(POLICY)
    assert here.verify("--policy", "kept.toml")[0] == 0
    policy.unlink()
    assert here.verify()[0] == 3


def test_any_byte_of_the_verdict_is_noticed(place) -> None:
    here = place()
    here.gate("-o", "verdict.json")
    file = here.root / "verdict.json"
    raw = file.read_bytes()
    for at in [*range(0, len(raw), 97), len(raw) - 1]:
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert here.verify()[0] == 3, raw[at - 20 : at + 20]
    for other in (raw + b"\n", raw[:-1], raw.replace(b"\n", b"\r\n"), b"", b"{}", b"[" * 100):
        file.write_bytes(other)
        assert here.verify()[0] == 3


def test_a_verdict_sealed_again_is_found_out(place) -> None:
    """The digest is no signature; but a verdict must be what its policy makes of its report."""
    here = place(0.5, 0.9)
    here.gate("-o", "verdict.json")
    file = here.root / "verdict.json"
    said = json.loads(file.read_bytes())
    for reason in said["reasons"]:
        reason["status"] = "pass"
    file.write_bytes(written(sealed({**said, "verdict": "pass"})))
    code, line = here.verify()
    assert code == 3 and "not what the policy makes of its report" in line


def test_a_report_of_another_model_is_undecided(place) -> None:
    here = place()
    (here.root / "model" / "config.json").write_text('{"model_type": "llama" }')
    code, line = here.gate()
    assert code == 7 and "other files: config.json" in line


BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...], int, str]] = {
    "no policy": (lambda r: (r / "policy.toml").unlink(), (), 3, "no such file; it should be a policy"),
    "a policy that is a folder": (
        lambda r: ((r / "policy.toml").unlink(), (r / "policy.toml").mkdir()),
        (),
        3,
        "not a regular",
    ),
    "a policy of nonsense": (lambda r: (r / "policy.toml").write_text("x"), (), 3, "not TOML"),
    "no report": (lambda r: (r / "report.json").unlink(), (), 3, "it should be a report"),
    "a report that is none": (lambda r: (r / "report.json").write_text("{}"), (), 3, "not a report"),
    "a report of NaN": (lambda r: (r / "report.json").write_text('{"format": NaN}'), (), 3, "NaN is not JSON"),
    "an output that exists": (lambda r: (r / "v").write_text("x"), ("-o", "v"), 4, "exists"),
    "an output in the model": (lambda r: None, ("-o", "model/v.json"), 2, "lies in the input"),
    "an output over its own report": (lambda r: None, ("-o", "report.json", "--force"), 2, "is the input"),
    "an output over its own policy": (lambda r: None, ("-o", "policy.toml", "--force"), 2, "is the input"),
    "the same output twice": (lambda r: None, ("-o", "v", "-o", "v"), 2, "twice"),
    "no model": (lambda r: (r / "model" / "config.json").unlink(), (), 3, "config.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(place, name: str) -> None:
    spoil, options, code, said = BAD[name]
    here = place()
    spoil(here.root)
    before = sorted(path.name for path in here.root.iterdir())
    found, line = here.gate(*options)
    assert found == code and said in line and line.count("\n") == 0 and line.startswith("weightguard: ")
    assert sorted(path.name for path in here.root.iterdir()) == before


def test_verify_says_which_flags_go_together(place) -> None:
    here = place()
    here.gate("-o", "verdict.json")
    assert here.run("verify", "verdict.json")[0] == 2
    assert here.run("verify", "verdict.json", "--model", "model", "--against", "model")[0] == 2
    assert here.run("verify", "model", "--model", "model")[0] == 2


def test_a_policy_without_data_evaluates_nothing(place) -> None:
    here = place()
    code, line = here.run("gate", "model", "--policy", "policy.toml")
    assert code == 7 and "nothing was evaluated" in line
