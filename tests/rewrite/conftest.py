"""A three-shard pico model with companions, and repairs of it in child processes that fail or die where they are told."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import stat
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save

from weightguard.cli.main import main
from weightguard.rewrite import output, stage

HIDDEN, MIDDLE, LAYERS, VOCABULARY = 4, 6, 2, 8
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": MIDDLE,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}  # fmt: skip
_LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (2, HIDDEN), "self_attn.v_proj": (2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (MIDDLE, HIDDEN), "mlp.up_proj": (MIDDLE, HIDDEN),
    "mlp.down_proj": (HIDDEN, MIDDLE), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
}  # fmt: skip
COMPANIONS: dict[str, bytes] = {
    "tokenizer.json": b'{"version": "1.0",\n "added_tokens": []}',
    "tokenizer_config.json": b'{"chat_template": "{{ messages }}", "odd":   "spacing"}\n',
    "chat_template.jinja": b"{% for m in messages %}{{ m }}{% endfor %}\r\n",
    "generation_config.json": b'{"max_new_tokens":5}',
    "LICENSE": b"Do what you like.\n",
    "README.md": b"---\nlicense: mit\ntags: [a, b]\n---\n# The card\n\nOf the input.\n",
    "sub/notes.txt": b"\xff\xfe any bytes \0",
}


def shards(seed: int = 0) -> list[dict[str, numpy.ndarray]]:
    """Tensors of three shards: the embedding, the first layer, the second layer and the last norm."""
    draw = numpy.random.default_rng(seed)
    shapes = [{"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}]
    shapes += [{f"model.layers.{i}.{n}.weight": s for n, s in _LAYER.items()} for i in range(LAYERS)]
    shapes[-1]["model.norm.weight"] = (HIDDEN,)
    return [{n: draw.standard_normal(s).astype("f4") for n, s in shard.items()} for shard in shapes]


def save_model(root: Path, seed: int = 0) -> Path:
    (root / "sub").mkdir(parents=True)
    for name, data in COMPANIONS.items():
        (root / name).write_bytes(data)
    (root / "config.json").write_text(json.dumps(CONFIG))
    weight_map, total = {}, 0
    for number, tensors in enumerate(shards(seed), 1):
        file = f"model-{number:05}-of-00003.safetensors"
        (root / file).write_bytes(save(tensors, {"format": "pt"}))
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


def _state(path: Path) -> tuple[Any, ...]:
    kind = path.lstat().st_mode
    return kind, hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(kind) else ""


# How a run ended -> what lay at the output afterwards -> how often; printed when the tests are done.
TALLY: dict[str, Counter[str]] = defaultdict(Counter)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for how, found in sorted(TALLY.items()):
        said = ", ".join(f"{found[state]} {state}" for state in ("whole", "as before", "wrong"))
        terminalreporter.write_line(f"{how}: {found.total()} points, output {said}")


Act = Callable[[str, Callable[[], Any], tuple], Any]


@dataclass
class Ended:
    """How a child ended: its exit code, or minus the signal, what it wrote to stderr, and the seconds it took."""

    code: int
    said: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that are no progress."""
        stages = ("read: ", "write: ", "verify: ", "compare: ", "* ")
        return [line for line in self.said.splitlines() if not line.startswith(stages)]


class Child:
    """A fork of this process, torch and all, that runs `action` and ends with what it returns."""

    def __init__(self, action: Callable[[], int]) -> None:
        self.begin = time.monotonic()
        self._said, into = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(action, into)
        os.close(into)

    def _run(self, action: Callable[[], int], into: int) -> None:
        code = 99
        try:
            import torch

            torch.set_num_threads(1)  # the threads of the parent are not in the fork
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.alarm(60)
            os.dup2(into, 2)
            sys.stdout, sys.stderr = open(os.devnull, "w"), os.fdopen(2, "w", 1)  # noqa: SIM115
            code = action()
        finally:
            os._exit(code)

    def wait(self) -> Ended:
        _, status = os.waitpid(self.pid, 0)
        with os.fdopen(self._said) as said:
            return Ended(os.waitstatus_to_exitcode(status), said.read(), time.monotonic() - self.begin)


CALLS: dict[str, tuple[Any, str]] = {
    "write": (os, "write"), "fsync": (os, "fsync"), "mkdir": (os, "mkdir"), "rename": (os, "rename"),
    "unlink": (os, "unlink"), "rmdir": (os, "rmdir"), "renameat2": (stage, "_renameat2"), "flock": (fcntl, "flock"),
    "create": (io, "open"),
}  # fmt: skip


class Fault:
    """Counts the calls that change the file system, and acts at the n-th. Install it in a child, where it may stay."""

    def __init__(self, at: int, act: Act, pause: float = 0) -> None:
        self.at, self.act, self.pause, self.seen = at, act, pause, list[str]()
        for name, (module, attribute) in CALLS.items():
            setattr(module, attribute, self._wrapped(name, getattr(module, attribute)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "create" and not set("wax+") & set(str([*arguments[1:2], options.get("mode", "")])):
                return real(*arguments, **options)
            if name == "write" and arguments[0] <= 2:
                return real(*arguments, **options)
            self.seen.append(name)
            time.sleep(self.pause)
            if len(self.seen) - 1 == self.at:
                return self.act(name, lambda: real(*arguments, **options), arguments)
            return real(*arguments, **options)

        return call


def die(before: bool) -> Act:
    """SIGKILL instead of the call, or in the middle of a write, or right after the call."""

    def act(name: str, real: Callable[[], Any], arguments: tuple) -> None:
        if not before and name == "write":
            os.pwrite(
                arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], os.lseek(arguments[0], 0, os.SEEK_CUR)
            )
        elif not before:
            with contextlib.suppress(OSError):  # a folder that is there already
                real()
        os.kill(os.getpid(), signal.SIGKILL)

    return act


def fail(number: int) -> Act:
    """OSError instead of the call."""

    def act(name: str, real: Callable[[], Any], arguments: tuple) -> None:
        path = next((a for a in arguments if isinstance(a, str | os.PathLike)), None)
        raise OSError(number, os.strerror(number), *([] if path is None else [path]))

    return act


def send(number: int) -> Act:
    """A signal to oneself right before the call."""

    def act(name: str, real: Callable[[], Any], arguments: tuple) -> Any:
        os.kill(os.getpid(), number)
        return real()

    return act


def nothing(name: str, real: Callable[[], Any], arguments: tuple) -> Any:
    return real()


ACTIONS: Mapping[str, Act] = {
    "killed before": die(before=True), "killed after": die(before=False),
    "ENOSPC": fail(errno.ENOSPC), "EIO": fail(errno.EIO),
    "SIGTERM": send(signal.SIGTERM), "SIGINT": send(signal.SIGINT),
    "nothing": nothing, "count": nothing,
}  # fmt: skip


@dataclass
class Place:
    """A folder with `model` (and `other`, made of other numbers), in which `out` is to appear and nothing else."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def held(self, name: str = "out") -> dict[str, tuple[Any, ...]]:
        """Every name below a folder with its mode and content; {} where there is nothing."""
        root = self.root / name
        return {str(p.relative_to(root)): _state(p) for p in sorted(root.rglob("*"))}

    def tally(self, how: str, state: str) -> None:
        TALLY[how][state] += 1

    def litter(self) -> list[str]:
        return sorted({p.name for p in self.root.iterdir()} - {"model", "other", "out"})

    def arguments(self, *more: str, method: str = "magnitude") -> list[str]:
        """A repair that needs no data and takes a few hundredths of a second."""
        chosen = ["--method", method, "--group", "row", "--ratio", "0.5"]
        return ["repair", str(self.model), *chosen, "-o", str(self.out), *more]

    def start(self, *arguments: str, at: int = -1, how: str | Act = "nothing", **more: Any) -> Child:
        """The command in a child process in which `how` happens at the n-th change of a file.

        exchange: whether the kernel can exchange two names. pause: seconds before every change. limit: bytes of a file.
        prepare: is called in the child first.
        """

        def action() -> int:
            output.BLOCK = output.ROOM = 512  # many writes a shard, and the same ones on every file system
            output.DIRECT = 0
            more.get("prepare", int)()
            if not more.get("exchange", True):
                stage._renameat2 = lambda *_: False  # type: ignore[assignment]
            if "limit" in more:
                resource.setrlimit(resource.RLIMIT_FSIZE, (more["limit"], more["limit"]))
            fault = Fault(at, ACTIONS[how] if isinstance(how, str) else how, more.get("pause", 0))
            code = main(arguments)
            if how == "count":
                (self.root / "calls").write_text("\n".join(fault.seen))
            return code

        return Child(action)

    def run(self, *arguments: str, **fault: Any) -> Ended:
        return self.start(*arguments, **fault).wait()


@pytest.fixture(scope="session", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A repair in this process, so that its forks find every module: they take half the time, and are killed at work."""
    place = Place(tmp_path_factory.mktemp("imported"))
    save_model(place.model)
    assert main(place.arguments("--format", "json")) == 0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    save_model(tmp_path / "model")
    save_model(tmp_path / "other", seed=1)
    return Place(tmp_path)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    """What an undisturbed repair writes."""
    place = Place(tmp_path_factory.mktemp("reference"))
    save_model(place.model)
    ended = place.run(*place.arguments())
    assert ended.code == 0, ended.said
    return place.held()


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with an output of another repair."""
    place = Place(tmp_path_factory.mktemp("earlier"))
    save_model(place.model)
    assert place.run(*place.arguments(method="random")).code == 0
    return place


@pytest.fixture
def occupied(place: Place, earlier: Place) -> Place:
    """A place where an output of another repair lies at `out`."""
    shutil.copytree(earlier.out, place.out)
    return place
