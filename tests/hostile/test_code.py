"""Files of a model that name code: none of it is imported or fetched, and nobody is asked over the network or on stdin.

The first two classes of keys are those of CVE-2026-4372 (`_attn_implementation_internal`, a kernel of the hub) and
CVE-2026-5241 (a `trust_remote_code` in the config, handed on to the config of a part of the model).
"""

from __future__ import annotations

import builtins
import json
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from weightguard.cli.main import main

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = "from pathlib import Path\nPath(r'{}').write_text('ran')\nclass Model: pass\nclass Config: pass\nclass Tokenizer: pass\n"
MAP = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
CONFIGS: dict[str, dict[str, Any]] = {
    "auto_map": {"auto_map": MAP},
    "auto_map of another repository": {"auto_map": {key: f"evil/repo--{value}" for key, value in MAP.items()}},
    "auto_map and trust": {"auto_map": MAP, "trust_remote_code": True},
    "auto_map in a config of the config": {"text_config": {"auto_map": MAP, "model_type": "llama"}},
    "auto_map and trust in a list of configs": {"parts": [{"auto_map": MAP, "trust_remote_code": True}]},
    "generation by a repository": {"custom_generate": "evil/repo", "trust_remote_code": True},
    "quantisation by a class of its own": {
        "quantization_config": {"quant_method": "evil.Quantizer", "auto_map": MAP, "trust_remote_code": True},
    },
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
# config.json of LLaVA; the tower's config is made by whatever class it names.
TOWERS: dict[str, dict[str, Any]] = {
    "a tower whose parts are elsewhere": {
        "model_type": "lightglue", "trust_remote_code": True,
        "keypoint_detector_config": {"model_type": "evil", "_name_or_path": "evil/repo", "auto_map": MAP},
    },
    "a tower with a kernel of the hub": {
        "model_type": "clip_vision_model", "_attn_implementation_internal": "evil/kernel",
        "_attn_implementation": "evil/kernel", "trust_remote_code": True, "auto_map": MAP,
    },
    "a tower of an encoder and a decoder": {
        "model_type": "vision-encoder-decoder", "decoder": {"model_type": "gpt2", "auto_map": MAP},
        "encoder": {"model_type": "evil", "auto_map": MAP, "_name_or_path": "evil/repo"},
    },
    "a tower of another library": {
        "model_type": "timm_wrapper", "architecture": "hf-hub:evil/repo", "model_args": {"pretrained": True},
    },
    "a tower on a backbone of the hub": {
        "model_type": "depth_anything", "backbone": "evil/repo", "use_pretrained_backbone": True, "backbone_config": None,
    },
    "a tower of an unknown kind": {"model_type": "evil", "auto_map": MAP, "_name_or_path": "evil/repo"},
}  # fmt: skip
# Files beside the weights that transformers reads, or would if it were asked for a processor.
BESIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "generation by a repository, in its own config": (
        "generation_config", {"custom_generate": "evil/repo", "trust_remote_code": True},
    ),
    "generation that moved to a repository": (
        "generation_config", {"penalty_alpha": 0.6, "top_k": 4, "dola_layers": "high"},
    ),
    "auto_map of the processor": (
        "processor_config", {"auto_map": {"AutoProcessor": "evil.Model"}, "processor_class": "Model"},
    ),
    "auto_map of the image processor": ("preprocessor_config", {"auto_map": {"AutoImageProcessor": "evil/repo--evil.Model"}}),
    "auto_map of the video processor": ("video_preprocessor_config", {"auto_map": {"AutoVideoProcessor": "evil.Model"}}),
}  # fmt: skip
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
    "auto_map of the adapter": {"auto_map": MAP, "trust_remote_code": True},
    "a runtime of its own": {"runtime_config": {"ephemeral_gpu_offload": True}, "peft_version": "evil/repo"},
}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A marker that is not there in the end; meanwhile nothing asks the network or stdin, loads code or fetches any.

    What is asked for is noted, since an exception might be swallowed on the way.
    """
    from transformers import dynamic_module_utils
    from transformers.generation import utils
    from transformers.integrations import hub_kernels

    asked: list[str] = []

    def forbid(place: Any, name: str) -> None:
        def forbidden(*given: Any, **_: Any) -> Any:
            asked.append(f"{name}{given[1:]}")
            raise AssertionError(name)

        monkeypatch.setattr(place, name, forbidden)

    for name in ("connect", "connect_ex", "sendto"):
        forbid(socket.socket, name)
    forbid(socket, "getaddrinfo")
    forbid(builtins, "input")
    for place in (dynamic_module_utils, utils):
        forbid(place, "get_cached_module_file")  # copies a stranger's module to where modules are imported from
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_: True)
    forbid(hub_kernels, "get_kernel")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "model"), str(tmp_path / "adapter")])
    marker = tmp_path / "marker"
    yield marker
    assert not marker.exists(), "code of a stranger ran"
    assert "evil" not in sys.modules and asked == []


def with_code(source: Path, target: Path, marker: Path, **files: Mapping[str, Any]) -> Path:
    """A copy with evil.py in it, and more keys in some of its JSON files."""
    shutil.copytree(source, target)
    for name in ("evil.py", "modeling_evil.py", "custom_generate/generate.py"):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(CODE.format(marker))
    for name, more in files.items():
        path = target / f"{name}.json"
        given = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**given, **more}))
    return target


@pytest.fixture(params=["local", pytest.param("hub", marks=pytest.mark.full)])
def placed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], str]:
    """Where a checkpoint lies: a function that gives its path, or moves it into a hub cache and gives its id."""

    def cached(model: Path) -> str:
        from huggingface_hub import constants

        hub = tmp_path / "hub" / "models--org--name"
        shutil.move(model, hub / "snapshots" / COMMIT)
        (hub / "refs").mkdir()
        (hub / "refs" / "main").write_text(COMMIT)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        return "org/name"

    return str if request.param == "local" else cached


def stats(tmp_path: Path, place: str, data: Mapping[str, Path], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capfd.readouterr()
    code = main(["stats", place, "--data", str(data["harmful"]), "--offline", "-o", str(tmp_path / "S")])
    said = capfd.readouterr().err
    assert "Traceback" not in said and code in (0, 3, 6), said
    return code, said


Placed = Callable[[Path], str]


@pytest.mark.parametrize("case", CONFIGS)
def test_configs(
    case: str, alone: Path, checkpoint: Any, data: Any, placed: Placed, tmp_path: Path, capfd: Any
) -> None:
    model = with_code(checkpoint("llama"), tmp_path / "model", alone, config=CONFIGS[case])
    code, said = stats(tmp_path, placed(model), data, capfd)
    refused = {"text_config": 3, "quantization_config": 6}  # the first, since Llama's class has no use for it
    assert code == next((refused[key] for key in CONFIGS[case] if key in refused), 0), said


@pytest.mark.parametrize("case", TOWERS)
def test_towers(case: str, alone: Path, checkpoint: Any, data: Any, placed: Placed, tmp_path: Path, capfd: Any) -> None:
    vision = json.loads((checkpoint("llava") / "config.json").read_text())["vision_config"]
    kept = vision if TOWERS[case]["model_type"] == vision["model_type"] else {}
    model = with_code(
        checkpoint("llava"), tmp_path / "model", alone, config={"vision_config": {**kept, **TOWERS[case]}}
    )
    code, said = stats(tmp_path, placed(model), data, capfd)
    assert code == (0 if kept else 3), said


@pytest.mark.parametrize("case", BESIDE)
def test_beside(case: str, alone: Path, checkpoint: Any, data: Any, placed: Placed, tmp_path: Path, capfd: Any) -> None:
    name, more = BESIDE[case]
    model = with_code(checkpoint("llama"), tmp_path / "model", alone, **{name: more})
    code, said = stats(tmp_path, placed(model), data, capfd)
    assert code == 0, said


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizers(
    case: str, alone: Path, checkpoint: Any, data: Any, placed: Placed, tmp_path: Path, capfd: Any
) -> None:
    model = with_code(checkpoint("llama"), tmp_path / "model", alone, tokenizer_config=TOKENIZERS[case])
    stats(tmp_path, placed(model), data, capfd)  # runs, or says in one line that the tokenizer cannot be loaded


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters(
    case: str, alone: Path, checkpoint: Any, adapter: Any, data: Any, placed: Placed, tmp_path: Path, capfd: Any
) -> None:
    place = adapter(checkpoint("llama"), target_modules=["q_proj"])
    place = with_code(place, tmp_path / "adapter", alone, adapter_config=ADAPTERS[case])
    code, said = stats(tmp_path, placed(place), data, capfd)
    assert code == 0, said


def test_answers(alone: Path, checkpoint: Any, data: Any, tmp_path: Path, capfd: Any) -> None:
    """A model whose every file names code is run and answers; its own way to generate is not used."""
    model = with_code(
        checkpoint("llama"), tmp_path / "model", alone, config=CONFIGS["auto_map and trust"],
        tokenizer_config=TOKENIZERS["auto_map of the tokenizer"],
        generation_config=BESIDE["generation that moved to a repository"][1],
    )  # fmt: skip
    asked = ["--harmful", str(data["harmful"]), "--max-new-tokens", "8", "-o", str(tmp_path / "R")]
    assert main(["evaluate", str(model), *asked]) == 0, capfd.readouterr().err
