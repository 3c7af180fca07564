"""Model objects, for running only: stock transformers and peft load what our own reader has already checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from weightguard.checkpoint import CODE_KEYS, Checkpoint
from weightguard.errors import CheckpointError, UnsupportedError, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

# A config may ask for an attention kernel that is not installed here, or that reads no explicit mask.
_KERNEL_KEYS = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
)


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    state_dict: Mapping[str, torch.Tensor] | None = None,
    classifier: bool = False,
) -> Any:
    """The causal language model of a checkpoint, or with `classifier` its sequence classifier, in eval mode.

    dtype: float32 by default whatever the files hold. state_dict: tensors by on-disk name instead of the files'.
    Experts run one after the other: grouped kernels know no float64. Code named by the config is never looked at.
    Errors: UnsupportedError, CheckpointError.
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: must be one of {', '.join(DTYPES)}")
    config = model_config(checkpoint)
    path = None if state_dict is not None else str(checkpoint.directory)
    given = {} if state_dict is None else {"state_dict": dict(state_dict)}
    with quiet():
        try:
            kind = _class_of(config, classifier)
            _check_size(checkpoint, kind, config)
            model, said = kind.from_pretrained(
                path, config=config, dtype=DTYPES[dtype], local_files_only=True, use_safetensors=True,
                ignore_mismatched_sizes=True, output_loading_info=True, experts_implementation="eager", **given,
            )  # fmt: skip
        except (MemoryError, CheckpointError):
            raise
        except Exception as error:  # model classes trust their configs and fail in every way there is
            raise CheckpointError(f"{checkpoint.label}: transformers cannot load it: {_one_line(error)}") from error
    apart = model.base_model is not model and not hasattr(config, "text_config")
    _check_loaded(checkpoint, kind.base_model_prefix if apart else "", said)
    return model.to(device_of(device)).eval()


def _class_of(config: Any, classifier: bool) -> Any:
    """The model class for a config; the language model of a model that sees comes with all of it."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSequenceClassification

    if classifier:
        return AutoModelForSequenceClassification._model_mapping[type(config)]
    heads = AutoModelForImageTextToText if hasattr(config, "text_config") else AutoModelForCausalLM
    return heads._model_mapping[type(config)]


def _check_size(checkpoint: Checkpoint, kind: Any, config: Any) -> None:
    """transformers makes room for what the config says before it looks at the files, however much that is."""
    with torch.device("meta"):
        wanted = sum(parameter.numel() for parameter in kind(config).parameters())
    held = sum(info.numel for info in checkpoint.tensors.values())
    if wanted > 2 * held + 1_000_000:  # twice: a head that the files leave out
        raise CheckpointError(
            f"{checkpoint.label}: config.json makes it a model of {wanted:,} parameters, the files hold {held:,}; "
            f"the config belongs to another model"
        )


def _check_loaded(checkpoint: Checkpoint, prefix: str, said: Mapping[str, Any]) -> None:
    """transformers fills what a checkpoint lacks, or holds in another shape, with random numbers. Not here.

    A checkpoint saved without its head (names without `prefix`) may lack that head: the decoder is all there. An empty
    prefix: the class does not tell the two apart.
    """
    for name, found, wanted in sorted(said["mismatched_keys"]):
        raise CheckpointError(
            f"{checkpoint.label}: tensor {name!r} is {list(found)}, config.json makes it {list(wanted)}; "
            f"the config belongs to another model"
        )
    whole = not prefix or any(name.startswith(f"{prefix}.") for name in checkpoint.tensors)
    lacking = sorted(name for name in said["missing_keys"] if whole or name.startswith(f"{prefix}."))
    if lacking:
        raise CheckpointError(
            f"{checkpoint.label}: missing tensor {lacking[0]!r}, which the architecture needs; download or save it again"
        )


def bare_decoder(checkpoint: Checkpoint, device: torch.device) -> Any:
    """The stock decoder without head and without weights: parameters on the meta device, buffers as the class makes them.

    Errors: UnsupportedError, CheckpointError.
    """
    from transformers import AutoModelForCausalLM

    config = model_config(checkpoint)
    config._experts_implementation = "eager"  # as in load_model
    with quiet(), _weightless():
        try:
            kind = AutoModelForCausalLM._model_mapping[type(config)]
            _check_size(checkpoint, kind, config)
            model = kind(config).base_model.eval()
        except (MemoryError, CheckpointError):
            raise
        except Exception as error:  # as in load_model
            raise CheckpointError(f"{checkpoint.label}: transformers cannot build it: {_one_line(error)}") from error
    for module in model.modules():  # not model.to(device), which would want to copy the parameters too
        module._buffers.update({name: held.to(device) for name, held in module._buffers.items() if held is not None})
    return model


@contextlib.contextmanager
def _weightless() -> Iterator[None]:
    """Modules built meanwhile have parameters without memory. Rotary tables and their like are buffers, and stay real."""
    register = torch.nn.Module.register_parameter

    def on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        held = None if parameter is None else torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, held)

    torch.nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def device_of(name: str) -> torch.device:
    """The torch device of this name, tried out. Error: UsageError."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {_one_line(error)}") from error
    return device


def model_config(checkpoint: Checkpoint) -> Any:
    """transformers' config object, built from our own reading of config.json without the keys that can name code."""
    from transformers import CONFIG_MAPPING

    kind = str(checkpoint.config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise UnsupportedError(f"config.json: transformers has no architecture {kind!r}")
    plain = {key: value for key, value in _without_kernels(checkpoint.config).items() if key != "model_type"}
    try:
        return CONFIG_MAPPING[kind].from_dict(plain)
    except Exception as error:  # the config class validates a stranger's values in many ways
        raise CheckpointError(f"config.json: transformers refuses it: {_one_line(error)}") from error


def _without_kernels(config: dict) -> dict:
    """The config, and the configs in it, without the keys that can name code or ask for a kernel."""
    kept = {key: value for key, value in config.items() if key not in (*CODE_KEYS, *_KERNEL_KEYS)}
    return {key: _without_kernels(value) if isinstance(value, dict) else value for key, value in kept.items()}


def load_adapted(base: Any, adapter: Checkpoint, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
    """`base` with the adapter over it, not merged, in eval mode; `state_dict` replaces the adapter's tensors."""
    import peft

    with quiet():
        try:
            model = peft.PeftModel.from_pretrained(base, str(adapter.directory), local_files_only=True)
            if state_dict is not None:
                peft.set_peft_model_state_dict(model, dict(state_dict))
        except MemoryError:
            raise
        except Exception as error:
            raise CheckpointError(f"{adapter.label}: peft cannot load it: {_one_line(error)}") from error
    return model.eval()


def load_tokenizer(*directories: Path) -> Any:
    """The tokenizer of the first directory that has one. Error: CheckpointError."""
    from transformers import AutoTokenizer

    for directory in directories:
        if not any(
            (directory / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
        ):
            continue
        with quiet():
            try:
                return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
            except Exception as error:  # tokenizer files fail in as many ways as there are tokenizers
                raise CheckpointError(f"{directory}: its tokenizer cannot be loaded: {_one_line(error)}") from error
    raise CheckpointError(
        f"{directories[0]}: no tokenizer; add its files, or give pre-tokenised data (.safetensors with input_ids)"
    )


def vocabulary_rows(model: Any) -> int:
    """Rows of the input embedding: the ids a forward pass accepts."""
    return model.get_input_embeddings().weight.shape[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' own bars and chatter off for a while; what matters is raised or said by us."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def pinned_threads(count: int) -> Iterator[None]:
    """A fixed torch thread count: the last bits of a forward pass depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
