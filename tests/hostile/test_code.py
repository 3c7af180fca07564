"""Files of a model that name code: none of it is imported, nobody is asked over the network, and nobody on stdin."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from weightguard.cli.main import main

CODE = "from pathlib import Path\nPath(r'{}').write_text('ran')\nclass Model: pass\nclass Config: pass\nclass Tokenizer: pass\n"
MAP = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
CONFIGS: dict[str, dict[str, Any]] = {
    "auto_map": {"auto_map": MAP},
    "auto_map of another repository": {"auto_map": {key: f"evil/repo--{value}" for key, value in MAP.items()}},
    "auto_map and trust": {"auto_map": MAP, "trust_remote_code": True},
    "auto_map in a config of the config": {"text_config": {"auto_map": MAP, "model_type": "llama"}},
    "custom pipelines": {"custom_pipelines": {"text-generation": {"impl": "evil.Model", "pt": ["AutoModel"]}}},
    "an attention kernel of the hub": {"attn_implementation": "evil/kernel"},
    "an attention kernel under its inner name": {"_attn_implementation": "evil/kernel:evil"},
    "an attention kernel under its innermost name": {"_attn_implementation_internal": "evil/kernel@main"},
    "kernels by part of the model": {"attn_implementation": {"text_config": "evil/kernel", "": "evil/kernel"}},
    "an experts kernel of the hub": {"experts_implementation": "evil/kernel", "_experts_implementation": "evil/kernel"},
    "kernels for every layer": {"use_kernels": True, "kernel_config": {"RMSNorm": "evil/kernel:evil"}},
    "an architecture of its own": {"architectures": ["evil.Model", "os.system"]},
    "a tokenizer class of its own": {"tokenizer_class": "evil.Tokenizer"},
    "a place of its own": {"_name_or_path": "evil/repo", "_commit_hash": "main"},
}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "auto_map of the tokenizer": {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}},
    "auto_map of the tokenizer elsewhere": {"auto_map": {"AutoTokenizer": ["evil/repo--evil.Tokenizer", None]}},
    "auto_map of the tokenizer and trust": {
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "trust_remote_code": True, "tokenizer_class": "Tokenizer",
    },
}  # fmt: skip
ADAPTERS: dict[str, dict[str, Any]] = {
    "auto_mapping": {"auto_mapping": {"base_model_class": "Model", "parent_library": "evil"}},
    "megatron_core": {"megatron_core": "evil"},
    "a place of its own for the base": {"revision": "main", "base_model_class": "evil.Model"},
}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A marker that is not there in the end; meanwhile neither the network nor stdin is to be touched."""

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network, or stdin, was asked")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr("builtins.input", forbidden)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "model"), str(tmp_path / "adapter")])
    marker = tmp_path / "marker"
    yield marker
    assert not marker.exists(), "code of a stranger ran"
    assert "evil" not in sys.modules


def with_code(source: Path, target: Path, marker: Path, **files: Mapping[str, Any]) -> Path:
    """A copy with evil.py in it, and more keys in some of its JSON files."""
    shutil.copytree(source, target)
    for name in ("evil.py", "modeling_evil.py", "custom_generate/generate.py"):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(CODE.format(marker))
    for name, more in files.items():
        path = target / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return target


def stats(tmp_path: Path, place: Path, data: Mapping[str, Path], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capfd.readouterr()
    code = main(["stats", str(place), "--data", str(data["harmful"]), "-o", str(tmp_path / "S")])
    said = capfd.readouterr().err
    assert "Traceback" not in said and code in (0, 3, 6), said
    return code, said


@pytest.mark.parametrize("case", CONFIGS)
def test_configs(case: str, alone: Path, checkpoint: Any, data: Any, tmp_path: Path, capfd: Any) -> None:
    model = with_code(checkpoint("llama"), tmp_path / "model", alone, config=CONFIGS[case])
    code, said = stats(tmp_path, model, data, capfd)
    assert code == (3 if "text_config" in CONFIGS[case] else 0), said  # which Llama's class has no use for


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizers(case: str, alone: Path, checkpoint: Any, data: Any, tmp_path: Path, capfd: Any) -> None:
    model = with_code(checkpoint("llama"), tmp_path / "model", alone, tokenizer_config=TOKENIZERS[case])
    stats(tmp_path, model, data, capfd)  # runs, or says in one line that the tokenizer cannot be loaded


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters(case: str, alone: Path, checkpoint: Any, adapter: Any, data: Any, tmp_path: Path, capfd: Any) -> None:
    place = adapter(checkpoint("llama"), target_modules=["q_proj"])
    place = with_code(place, tmp_path / "adapter", alone, adapter_config=ADAPTERS[case])
    code, said = stats(tmp_path, place, data, capfd)
    assert code == 0, said
