"""Model objects, for running only: stock transformers and peft load what our own reader has already checked."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from weightguard.checkpoint import Checkpoint, family_of, foreign_names, without_choices
from weightguard.errors import CheckpointError, UnsupportedError, UsageError, lacks_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SPREAD = "auto"

MAX_TABLES = 64_000_000  # numbers in rotary tables, masks and their like, which no file holds
_NO_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    state_dict: Mapping[str, torch.Tensor] | None = None,
    classifier: bool = False,
) -> Any:
    """The causal language model of a checkpoint, or with `classifier` its sequence classifier, in eval mode.

    dtype: float32 by default whatever the files hold. device "auto": accelerate spreads it over every GPU. state_dict:
    tensors by on-disk name instead of the files'.
    Experts run one after the other: grouped kernels know no float64. Code named by the config is never looked at.
    Errors: UnsupportedError, CheckpointError.
    """
    config = model_config(checkpoint)
    path = None if state_dict is not None else str(checkpoint.directory)
    given: dict[str, Any] = {} if state_dict is None else {"state_dict": dict(state_dict)}
    given |= {"device_map": SPREAD} if device == SPREAD else {}
    with quiet():
        try:
            kind = _class_of(config, classifier)
            _check_size(checkpoint, kind, config)
            model, said = kind.from_pretrained(
                path, config=config, dtype=dtype_of(dtype), local_files_only=True, use_safetensors=True, trust_remote_code=False,
                ignore_mismatched_sizes=True, output_loading_info=True, experts_implementation="eager", **given,
            )  # fmt: skip
        except (CheckpointError, UnsupportedError, UsageError):
            raise
        except Exception as error:  # model classes trust their configs and fail in every way there is
            raise _failure(error, f"{checkpoint.label}: transformers cannot load it") from error
    _check_loaded(checkpoint, _prefix(model), said)
    return model.eval() if device == SPREAD else model.to(device_of(device)).eval()


def _class_of(config: Any, classifier: bool) -> Any:
    """The model class for a config; the language model of a model that sees comes with all of it."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSequenceClassification

    if classifier:
        return AutoModelForSequenceClassification._model_mapping[type(config)]
    heads = AutoModelForImageTextToText if hasattr(config, "text_config") else AutoModelForCausalLM
    if type(config) not in heads._model_mapping:
        raise UnsupportedError(f"config.json: transformers has no causal {config.model_type} model")
    return heads._model_mapping[type(config)]


def _check_size(checkpoint: Checkpoint, kind: Any, config: Any) -> None:
    """transformers makes room for what the config says before it looks at the files, however much that is."""
    with torch.device("meta"):
        model = kind(config)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    held = sum(info.numel for info in checkpoint.tensors.values())
    if wanted > 2 * held + 1_000_000:  # twice: a head that the files leave out
        raise CheckpointError(
            f"{checkpoint.label}: config.json makes it a model of {wanted:,} parameters, the files hold {held:,}; "
            f"the config belongs to another model"
        )
    tables = sum(buffer.numel() for buffer in model.buffers())
    if tables > 2 * held + MAX_TABLES:
        raise CheckpointError(
            f"{checkpoint.label}: config.json makes it a model with tables of {tables:,} numbers beside its weights; "
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
        why = foreign_names(checkpoint.config, checkpoint.tensors) or "download or save it again"
        raise CheckpointError(f"{checkpoint.label}: missing tensor {lacking[0]!r}, which the architecture needs; {why}")


def bare_model(checkpoint: Checkpoint, dtype: str, device: torch.device) -> Any:
    """The stock causal model in eval mode, parameters on the meta device, buffers as the class makes them.

    Errors: UnsupportedError, CheckpointError.
    """
    family_of(checkpoint.config)  # what the table lacks is told as that, before transformers trips over it
    config = model_config(checkpoint)
    with quiet():
        try:
            kind = _class_of(config, classifier=False)
            _check_size(checkpoint, kind, config)
            with _weightless():
                model = kind._from_config(config, dtype=dtype_of(dtype), experts_implementation="eager").eval()
        except (CheckpointError, UnsupportedError, UsageError):
            raise
        except Exception as error:  # as in load_model
            raise _failure(error, f"{checkpoint.label}: transformers cannot load it") from error
    for module in model.modules():  # not model.to(device), which would want to copy the parameters too
        module._buffers.update({name: held.to(device) for name, held in module._buffers.items() if held is not None})
    return model


class Filler:
    """Gives a model without weights the tensors of a checkpoint, as many at a time as it is told.

    transformers' own loader does it, so that renamed, fused and packed tensors become what the model class wants.
    """

    def __init__(self, model: Any, checkpoint: Checkpoint, dtype: str) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.modeling_utils import LoadStateDictConfig

        self._model, self._checkpoint = model, checkpoint
        plan, mapping = model._get_dtype_plan(dtype_of(dtype)), get_model_conversion_mapping(model)
        self._config = LoadStateDictConfig(
            ignore_mismatched_sizes=True, dtype=dtype_of(dtype), dtype_plan=plan, weight_mapping=mapping
        )

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Tensors of these shapes are what the model needs, no more is asked than that. Error: CheckpointError."""
        self._fill({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, torch.device("meta"))
        missing = set(self._said.missing_keys)
        for pair in self._model.all_tied_weights_keys.items():
            missing -= set(pair) if not missing.issuperset(pair) else set()
        _check_loaded(self._checkpoint, _prefix(self._model), {"mismatched_keys": (), "missing_keys": missing})

    def fill(self, tensors: Mapping[str, Callable[[], torch.Tensor]], device: torch.device) -> None:
        """On-disk name -> a function that reads the tensor. Errors: CheckpointError, and those of reading."""
        waiting = {name: _Lazy(read) for name, read in tensors.items()}
        try:
            self._fill(waiting, device)
        finally:
            failure = next((each.failure for each in waiting.values() if each.failure), None)
            if failure is not None:
                raise failure

    def _fill(self, tensors: Mapping[str, Any], device: torch.device) -> None:
        from transformers.core_model_loading import convert_and_load_state_dict_in_model

        config = dataclasses.replace(self._config, device_map={"": device})
        with quiet(), _one_after_the_other():
            self._said, _ = convert_and_load_state_dict_in_model(self._model, dict(tensors), config)
        for said in self._said.conversion_errors.values():
            raise _failure(Exception(said), f"{self._checkpoint.label}: transformers cannot load it")
        _check_loaded(self._checkpoint, "", {"mismatched_keys": self._said.mismatched_keys, "missing_keys": ()})


@contextlib.contextmanager
def _one_after_the_other() -> Iterator[None]:
    """transformers' loader reads each tensor when it is its turn, instead of all at once in threads."""
    before = os.environ.get(_NO_THREADS)
    os.environ[_NO_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[_NO_THREADS]
        if before is not None:
            os.environ[_NO_THREADS] = before


class _Lazy:
    """A tensor that is read when the loader asks for all of it; the loader makes text of every failure, this keeps it."""

    def __init__(self, read: Callable[[], torch.Tensor]) -> None:
        self._read = read
        self.failure: Exception | None = None

    def __getitem__(self, _: Any) -> torch.Tensor:
        try:
            return self._read()
        except Exception as error:
            self.failure = error
            raise


def _prefix(model: Any) -> str:
    """What the names of the decoder begin with; empty where the class does not tell decoder and head apart."""
    apart = model.base_model is not model and not hasattr(model.config, "text_config")
    return model.base_model_prefix if apart else ""


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


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype of a forward pass. Error: UsageError."""
    if name not in DTYPES:
        raise UsageError(f"--dtype {name}: must be one of {', '.join(DTYPES)}")
    return DTYPES[name]


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
    config = {key: value for key, value in checkpoint.config.items() if key != "model_type"}
    try:
        with quiet():
            return CONFIG_MAPPING[kind].from_dict(without_choices(config))
    except Exception as error:  # the config class validates a stranger's values in many ways
        raise _failure(error, "config.json: transformers refuses it") from error


def load_adapted(base: Any, adapter: Checkpoint, state_dict: Mapping[str, torch.Tensor] | None = None) -> Any:
    """`base` with the adapter over it, not merged, in eval mode; `state_dict` replaces the adapter's tensors."""
    import peft

    with quiet(), warnings.catch_warnings():
        # peft packs factors of single experts under patterns of its own, and then warns of those
        warnings.filterwarnings("ignore", message=".*_pattern keys did not match any targeted module")
        try:
            model = peft.PeftModel.from_pretrained(base, str(adapter.directory), local_files_only=True)
            if state_dict is not None:
                peft.set_peft_model_state_dict(model, dict(state_dict))
        except Exception as error:
            raise _failure(error, f"{adapter.label}: peft cannot load it") from error
    return model.eval()


def load_tokenizer(*directories: Path) -> Any:
    """The tokenizer of the first directory that has one. Error: CheckpointError."""
    # Texts are encoded one after the other. Threads for more would hang, and not fail, where no room is left for them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
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
                raise _failure(error, f"{directory}: its tokenizer cannot be loaded") from error
    raise CheckpointError(
        f"{directories[0]}: no tokenizer; add its files, or give pre-tokenised data (.safetensors with input_ids)"
    )


def vocabulary_rows(model: Any) -> int:
    """Rows of the input embedding: the ids a forward pass accepts."""
    return model.get_input_embeddings().weight.shape[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' own bars and chatter off for a while; what matters is raised or said by us.

    The hub is out of reach meanwhile: what is loaded lies on disk, whatever other repositories its configs name.
    """
    from huggingface_hub import constants
    from transformers.utils import logging

    level, bars, offline = logging.get_verbosity(), logging.is_progress_bar_enabled(), constants.HF_HUB_OFFLINE
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
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


def _failure(error: Exception, said: str) -> Exception:
    """What a library's exception becomes: where memory ran out, that is said and not what it was needed for."""
    if lacks_memory(error):
        return MemoryError(str(error))
    return CheckpointError(f"{said}: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
