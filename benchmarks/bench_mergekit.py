"""The same edit, every linear of a 2 GB checkpoint times 0.7, by mergekit and by weightguard: CPU time and memory.

    python benchmarks/bench_mergekit.py --python ENVIRONMENT/bin/python   # one that has mergekit
    python benchmarks/bench_mergekit.py                                   # makes one, 7 GB of disk in all
    python benchmarks/bench_mergekit.py --smoke --python ...              # a small checkpoint

Both run in processes of their own, net of their imports, one thread; both outputs must hold the same weights. weightguard
runs three times: as it is (digests, manifest, everything read again), without the second reading, and without digests too,
which is what mergekit does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_rewrite import PeakMemory, build

KEEP = 0.7
ROWS = {
    "mergekit": "mergekit, passthrough with scale",
    "whole": "weightguard, digests, read again",
    "unverified": "weightguard, digests",
    "plain": "weightguard, no digests",
}
RECIPE = """
merge_method: passthrough
dtype: bfloat16
slices:
  - sources:
      - model: {model}
        layer_range: [0, {layers}]
        parameters:
          scale:
            - filter: _proj
              value: {keep}
            - value: 1.0
"""


def merged(root: Path, out: Path) -> None:
    import torch
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    torch.set_num_threads(1)
    layers = json.loads((root / "tuned/config.json").read_text())["num_hidden_layers"]
    recipe = yaml.safe_load(RECIPE.format(model=root / "tuned", layers=layers, keep=KEEP))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    with Counted() as counted:
        run_merge(MergeConfiguration.model_validate(recipe), str(out), options)
    counted.say()


def rewritten(row: str, root: Path, out: Path) -> None:
    import torch

    from weightguard.api.repairing import identities
    from weightguard.api.subject import open_subject
    from weightguard.plan import Plan, Scale
    from weightguard.rewrite import Options, rewrite
    from weightguard.rewrite.stream import write_weights

    torch.set_num_threads(1)
    with Counted() as counted:
        subject = open_subject(str(root / "tuned"), None, offline=True)
        sources = subject.sources("weight")
        edits = {name: Scale(name, "weight", KEEP) for name in sources.linears}
        plan = Plan("scale", "control", "weight", {}, edits, {})
        if row == "plain":
            out.mkdir()
            write_weights(plan, sources, out, lambda _: None, hashing=False)
        else:
            options = Options(verify_write=row == "whole")
            facts = {"command": "", "notes": []}
            rewrite(plan, sources, out, identities(subject, "weight"), facts, lambda *_: None, options)
    counted.say()


class Counted(PeakMemory):
    """CPU and wall time and the peak of anonymous memory of a block."""

    def __enter__(self) -> Counted:
        super().__enter__()
        self.cpu, self.wall = time.process_time(), time.monotonic()
        return self

    def __exit__(self, *raised: object) -> None:
        self.cpu, self.wall = time.process_time() - self.cpu, time.monotonic() - self.wall
        super().__exit__(*raised)
        self.cpu -= self.spent

    def say(self) -> None:
        print(json.dumps({"cpu_s": self.cpu, "wall_s": self.wall, "anonymous_mb": self.above / 1e6}))


def measured(python: str, row: str, root: Path, rounds: int) -> dict:
    """The round with the least CPU time."""
    found = []
    for _ in range(rounds):
        shutil.rmtree(root / row, ignore_errors=True)
        line = [python, __file__, "--child", row, "--directory", str(root)]
        done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
        found.append({"row": row, **json.loads(done.stdout.splitlines()[-1])})
        print(json.dumps(found[-1]), file=sys.stderr)
    return min(found, key=lambda each: each["cpu_s"])


def environment(given: str | None, root: Path) -> str | None:
    """A Python that can import mergekit; None, and a line that says why, where there is none."""
    python = given or str(root / "mergekit/bin/python")
    try:
        if given is None:
            subprocess.run([sys.executable, "-m", "venv", root / "mergekit"], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "mergekit"], check=True)
        subprocess.run([python, "-c", "import mergekit.merge"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"skipped: mergekit cannot be had here ({error})")
        return None
    return python


def check_equal(one: Path, other: Path) -> None:
    import torch
    from safetensors.torch import load_file

    sides = [
        {n: t for p in sorted(side.glob("*.safetensors")) for n, t in load_file(p).items()} for side in (one, other)
    ]
    assert sides[0].keys() == sides[1].keys()
    for name, tensor in sides[0].items():
        assert torch.equal(tensor, sides[1][name]), f"{name} differs"
    print(f"{len(sides[0])} tensors are the same in {one.name} and {other.name}")


def report(python: str, root: Path, rounds: int) -> None:
    rows = [measured(python if row == "mergekit" else sys.executable, row, root, rounds) for row in ROWS]
    for row in ROWS:
        if row != "mergekit":
            check_equal(root / "mergekit", root / row)
    print(f"{'':36} {'CPU s':>8} {'ratio':>7} {'wall s':>8} {'anonymous MB':>13} {'ratio':>7}")
    first = rows[0]
    for row in rows:
        cpu, memory = row["cpu_s"] / first["cpu_s"], row["anonymous_mb"] / first["anonymous_mb"]
        print(f"{ROWS[row['row']]:36} {row['cpu_s']:8.2f} {cpu:7.2f} {row['wall_s']:8.2f} "
              f"{row['anonymous_mb']:13.0f} {memory:7.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="an interpreter that has mergekit")
    parser.add_argument("--directory", type=Path, help="where the checkpoints lie while this runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--child", choices=ROWS)
    options = parser.parse_args()
    if options.child:
        out = options.directory / options.child
        merged(options.directory, out) if options.child == "mergekit" else rewritten(
            options.child, options.directory, out
        )
        return
    root = Path(tempfile.mkdtemp(dir=options.directory))
    try:
        with tempfile.TemporaryDirectory(dir=options.directory) as place:
            python = environment(options.python, Path(place))
            if python is not None:
                build(root, *((256, 688, 2) if options.smoke else (4096, 11008, 5)))
                report(python, root, options.rounds)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
