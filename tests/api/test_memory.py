"""--max-memory: the same bits as without it, refused in one line where it cannot be kept, and kept where it is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

import weightguard as wg
from weightguard.api import memory
from weightguard.cli.main import main
from weightguard.errors import UsageError

Build = Callable[..., Path]
PART, ADVICE = r"[0-9.]+ (?:[MG]B|bytes)", r"\); give at least that much\n"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("512MB", 512 * 10**6),
        ("1.5 GiB", 3 << 29),
        ("64kb", 64_000),
        ("7", 7),
        (12, 12),
        (None, None),
    ],
)
def test_sizes(text: str | int | None, size: int | None) -> None:
    assert memory.as_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "0GB", 0, "-1GB", "4 XB", "1e9", "4GB4", "٤GB" * 9])
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(UsageError, match=r"^--max-memory .*not a size such as 4GB or 512MB$"):
        memory.as_bytes(text)


def test_sizes_in_words_are_never_too_small() -> None:
    assert [memory.shown(n) for n in (999, 10**6, 1_234_567, 2 * 10**9 + 1)] == [
        "999 bytes",
        "1 MB",
        "1.3 MB",
        "2.1 GB",
    ]


def test_statistics_and_masks_are_the_same_from_a_spill(
    checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just enough for one layer: everything that waits is on disk."""
    from weightguard.statistics import room
    from weightguard.statistics.walk import Walk

    model, rows = checkpoint("llama", "bfloat16", sharded=True), str(data["harmful"])
    spilled: list[Walk] = []
    monkeypatch.setattr(room, "bytes_waiting", lambda _: 10**12)
    monkeypatch.setattr(Walk, "spill", lambda walk, spill=Walk.spill: (spilled.append(walk), spill(walk)))
    found, wanted = (wg.stats(model, data=rows, threads=1, max_memory=size) for size in ("64GB", None))
    assert len(spilled) == 1 and found.to_bytes() == wanted.to_bytes()
    given = {"aligned": str(checkpoint("llama", "bfloat16", kind="aligned")), "harmful": rows, "threads": 1}
    outs = [tmp_path / "kept", tmp_path / "free"]
    for out, size in zip(outs, ("64GB", None), strict=True):
        wg.repair(str(model), out=out, max_memory=size, **given)
    for file in outs[0].iterdir():
        assert file.read_bytes() == (outs[1] / file.name).read_bytes(), file.name


def test_too_little_for_one_layer_is_refused_with_what_it_takes(
    checkpoint: Build, data: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["stats", str(checkpoint("llama")), "--data", str(data["harmful"]), "-o", str(tmp_path / "S")]
    capsys.readouterr()  # what saving the model said
    assert main([*arguments, "--max-memory", "1MB"]) == 2
    said = capsys.readouterr().err
    head, _, rest = said.partition("takes about ")
    assert head == "weightguard: --max-memory 1 MB: calibration "
    size, _, parts = rest.partition(" (")
    assert re.fullmatch(
        rf"{PART} that Python and its libraries hold already, {PART} for one layer at work{ADVICE}", parts
    )
    assert main([*arguments, "--max-memory", str(2 * (memory.as_bytes(size) or 0))]) == 0


def drawn(folder: Path) -> dict[str, str]:
    """Pre-tokenised safety and benign rows of 3 to 12 ids."""
    import numpy
    from safetensors.numpy import save_file

    random = numpy.random.default_rng(0)
    for name in ("safety", "benign"):
        ids, lengths = random.integers(1, 64, (9, 12)), random.integers(3, 13, 9)
        save_file({"input_ids": ids, "attention_mask": (numpy.arange(12) < lengths[:, None]).astype(int),
                   "labels": ids}, folder / f"{name}.safetensors")  # fmt: skip
    return {name: str(folder / f"{name}.safetensors") for name in ("safety", "benign")}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_refit_is_the_same_from_a_spill(
    family: str, checkpoint: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states, and what waits within a layer, are on disk; chunks of three rows, so that something waits."""
    from weightguard.api import behaviour
    from weightguard.statistics.spill import Spill

    waited: list[int] = []
    monkeypatch.setattr(behaviour, "CHUNK", 36)
    monkeypatch.setattr(Spill, "__call__", lambda s, x, put=Spill.__call__: (waited.append(x.numel()), put(s, x))[1])
    given = {"method": "refit", "aligned": str(checkpoint(family, kind="aligned")), "judge": "none", "threads": 1}
    for out, size in (("kept", "64GB"), ("free", None)):
        wg.repair(checkpoint(family), out=tmp_path / out, max_memory=size, **given, **drawn(tmp_path))
        assert bool(waited) == (size is not None)
        waited.clear()
    for file in (tmp_path / "kept").iterdir():
        assert file.read_bytes() == (tmp_path / "free" / file.name).read_bytes(), file.name


def test_a_refit_without_a_bound_is_refused(
    checkpoint: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare.jsonl").write_text('{"prompt": "make fire please"}\n')
    files = drawn(tmp_path)
    refused = {
        ("llama", "64GB", ""): "--judge opening holds a whole model, or all of its activations or edits;",
        ("llama", "64GB", "--judge none --rank 2"): "--rank holds a whole model, or all of its activations or edits;",
        (
            "llama",
            "64GB",
            f"--judge none --safety {tmp_path / 'bare.jsonl'}",
        ): "rows without an answer in bare.jsonl get one",
        ("mixtral", "64GB", "--judge none"): "what is sent to routed experts is held for all rows at once",
        ("llama", "40MB", "--judge none"): "--method refit takes about",
    }
    for (family, size, more), line in refused.items():
        models = [str(checkpoint(family)), "--aligned", str(checkpoint(family, kind="aligned"))]
        data = ["--safety", files["safety"], "--benign", files["benign"], "--max-memory", size, *more.split()]
        capsys.readouterr()
        assert main(["repair", *models, "--method", "refit", *data, "-o", str(tmp_path / "OUT")]) == 2
        said = capsys.readouterr().err
        assert said.startswith("weightguard: --max-memory") and line in said and said.count("\n") == 1, said
        assert not (tmp_path / "OUT").exists()


def test_what_refit_needs_is_known_before_it_begins(
    checkpoint: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer of three models and a solve; refused with what it takes when that is a byte more than there is."""
    from weightguard.statistics import room

    given = {"method": "refit", "aligned": str(checkpoint("llama", kind="aligned")), "judge": "none", "threads": 1}
    monkeypatch.setattr(room, "bytes_solving", lambda *_: 10**12)
    with pytest.raises(UsageError, match=r"refit with one layer of each model in memory takes about \d+\.\d GB"):
        wg.repair(checkpoint("llama"), out=tmp_path / "OUT", max_memory="999GB", **given, **drawn(tmp_path))


def test_what_a_repair_takes_is_said_by_part(
    checkpoint: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest tensor is named with what it takes itself, beside what is there whatever the tensors are."""
    monkeypatch.setattr(memory, "held", lambda: 200_000_000)
    model = str(checkpoint("llama"))
    given = ["--method", "magnitude", "--group", "row", "--ratio", "0.5", "-o", str(tmp_path / "OUT")]
    capsys.readouterr()
    assert main(["repair", model, *given, "--max-memory", "100MB"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "weightguard: --max-memory 100 MB: --method magnitude takes about 250.4 MB (200 MB that Python and"
    )
    widest = "model.layers.0.mlp.gate_proj.weight or as much of it as is edited at once"
    assert f"33.6 MB for files and plans, 16.8 MB for {widest}); give at least that much\n" in said
    assert main(["repair", model, *given, "--max-memory", "251MB"]) == 0


@pytest.mark.parametrize("method", ["gradient-reset", "undo-abliteration", "truncate"])
def test_methods_that_hold_more_are_refused(
    method: str, checkpoint: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, aligned = checkpoint("llama"), checkpoint("llama", kind="aligned")
    given = ["--method", method, "--aligned", str(aligned), "-o", str(tmp_path / "OUT"), "--max-memory", "64GB"]
    assert main(["repair", str(model), *given]) == 2
    assert f"--max-memory: --method {method} holds a whole model" in capsys.readouterr().err


def test_what_is_needed_does_not_depend_on_the_number_of_layers(checkpoint: Build) -> None:
    import numpy

    from weightguard.checkpoint import open_checkpoint, resolve
    from weightguard.data import Encoded
    from weightguard.statistics.room import bytes_at_work
    from weightguard.statistics.walk import Walk

    rows = [Encoded(numpy.ones(9, numpy.int64), numpy.ones(9, bool), 1)]
    places = [checkpoint("llama", num_hidden_layers=layers) for layers in (2, 7)]
    walks = [Walk(open_checkpoint(resolve(str(place))), None, {"rows": rows}) for place in places]
    assert [walk.layers for walk in walks] == [2, 7]
    assert bytes_at_work(walks[0]) == bytes_at_work(walks[1])


@pytest.mark.parametrize(
    ("method", "options", "transposed", "grows"),
    [
        ("antidote", {"group": "row"}, False, False),
        ("antidote", {"group": "matrix"}, False, False),
        ("random", {"group": "global"}, False, False),
        ("scale", {}, False, False),
        ("antidote", {"group": "row"}, True, True),
        ("safe-lora", {}, False, True),
    ],
)
def test_what_is_held_of_a_tensor(method: str, options: dict[str, str], transposed: bool, grows: bool) -> None:
    """Beyond 256 MB a larger tensor takes no more, where it can be edited in blocks of rows."""
    from weightguard.checkpoint import Linear, TensorInfo
    from weightguard.methods import method_class

    chosen = method_class(method)(**options)
    linear = Linear("t", 0, "down", transposed)
    sizes = [TensorInfo("t", "f", "BF16", (rows, 8192), 0, rows * 8192 * 2) for rows in (1 << 15, 1 << 20)]
    small, large = (memory._at_once(chosen, linear, info) for info in sizes)
    assert (large > small) == grows and small <= 48 * sizes[0].numel


def test_torchs_own_way_to_say_that_memory_is_out_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        )

    monkeypatch.setattr("weightguard.api.stats", fail)
    assert main(["stats", "m", "-o", "S"]) == 5
    assert capsys.readouterr().err == "weightguard: out of memory\n"


@pytest.mark.full
def test_checkpoints_several_times_larger_than_the_limit(tmp_path: Path) -> None:
    """The benchmark's small form: 5 times the limit in float32, under RLIMIT_DATA."""
    script = Path(__file__).parents[2] / "benchmarks" / "bench_memory.py"
    command = [sys.executable, str(script), "--smoke", "--directory", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = [SimpleNamespace(**json.loads(line)) for line in done.stderr.splitlines() if line.startswith("{")]
    whole = [row for row in rows if row.row == "whole"]
    assert [row.code for row in whole] == [5, 5] and 2 * whole[1].stored_mb > 4 * whole[1].limit_mb
    for row in rows:
        if row.row != "whole":
            most = row.limit_mb * (2 if row.row == "refit" else 1)
            assert row.code == 0 and row.same is not False and row.peak_mb < most, row
    peaks = {layers: {row.row: row.peak_mb for row in rows if row.layers == layers} for layers in (12, 48)}
    added = 2 * (whole[1].stored_mb - whole[0].stored_mb)  # of the model in float32
    for name, models in {"stats": 1, "antidote": 1, "safe-lora": 1, "refit": 3}.items():
        assert peaks[48][name] - peaks[12][name] < 0.05 * models * added, name
    assert sum(row.same is True for row in rows) == 8
