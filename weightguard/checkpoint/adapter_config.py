"""adapter_config.json: what peft could not load or would load as something else, and which modules it adapts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping

from weightguard.checkpoint.patterns import is_bounded
from weightguard.errors import CheckpointError, UnsupportedError

# Options under which s·B·A over the named base is not what stock peft computes.
_REFUSED = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "arrow_config", "alora_invocation_tokens", "kasa_config",
    "velora_config", "monteclora_config", "layer_replication", "megatron_config", "target_parameters",
    "trainable_token_indices",
)  # fmt: skip
# Initialisations that rewrite the base when the adapter is loaded, and those that do not.
_REWRITES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
_KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
_TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
ALL_LINEAR = "all-linear"


def check_config(config: Mapping[str, object]) -> None:
    """Refuse a config that peft cannot load, or under which the update is not s·B·A. Errors name the key."""
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(
            f"adapter_config.json: peft_type {config.get('peft_type')!r} is not supported, only LORA"
        )
    for key in _REFUSED:
        if config.get(key):
            raise UnsupportedError(f"adapter_config.json: {key} is not supported; merge the adapter with peft first")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_REWRITES_BASE):
        raise UnsupportedError(
            f"adapter_config.json: init_lora_weights {start!r} rewrites the base on loading; convert it to plain LoRA first"
        )
    for key, (allowed, words) in _RULES.items():
        if key in config and not allowed(config[key]):
            _refuse(key, config[key], words)
    _check_layers(config)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_start(value: object) -> bool:
    if value is None or isinstance(value, bool):
        return True
    return isinstance(value, str) and (value in ("", *_KEEPS_BASE) or value.lower() == "gaussian")  # as peft compares


def _is_layers(value: object) -> bool:
    return value is None or all(type(each) is int for each in (value if isinstance(value, list) else [value]))


def _is_share(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= 1


_NAMES = "it must be null, a list of names, or one pattern"
_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "target_modules": (lambda value: value is None or _is_names(value) or (isinstance(value, str) and value != ""), _NAMES),
    "exclude_modules": (lambda value: value is None or _is_names(value) or isinstance(value, str), _NAMES),
    "layers_pattern": (lambda value: value is None or _is_names(value) or isinstance(value, str), _NAMES),
    "modules_to_save": (lambda value: value is None or _is_names(value), "it must be null or a list of names"),
    "layers_to_transform": (_is_layers, "it must be null, a whole number, or a list of them"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "it must be none, all or lora_only"),
    "init_lora_weights": (_is_start, f"it must be true, false or one of {', '.join(_KEEPS_BASE)}"),
    "use_rslora": (lambda value: value is None or isinstance(value, bool), "it must be true or false"),
    "rank_pattern": (lambda value: isinstance(value, dict), "it must be a table of ranks by module"),
    "alpha_pattern": (lambda value: isinstance(value, dict), "it must be a table of alphas by module"),
    "task_type": (lambda value: value is None or value in _TASKS, f"it must be null or one of {', '.join(_TASKS)}"),
    "lora_dropout": (_is_share, "it must be a number from 0 to 1"),
}  # fmt: skip


def _check_layers(config: Mapping[str, object]) -> None:
    """Layers can be chosen by number only where modules are named in a list, and their pattern only with numbers."""
    layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    if pattern and layers is None:
        _refuse("layers_pattern", pattern, "without layers_to_transform it has no meaning")
    if isinstance(config.get("target_modules"), str) and (layers, pattern) != (None, None):
        key = "layers_to_transform" if layers is not None else "layers_pattern"
        _refuse(key, config[key], "target_modules must be a list beside it, not a pattern")


def _refuse(key: str, value: object, words: str) -> None:
    said = json.dumps(value)
    raise CheckpointError(f"adapter_config.json: {key} is {said if len(said) <= 60 else said[:60] + '...'}; {words}")


def check_patterns(config: Mapping[str, object], length: int) -> None:
    """Refuse regular expressions that peft would run over module names of up to `length` letters and that may never end."""
    for key in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
        for pattern in _listed(config.get(key)):
            check_pattern(pattern, pattern, key, length)


def check_pattern(whole: str, pattern: str, key: str, length: int) -> None:
    """Refuse `whole`, as peft makes it of `pattern`, where it is no regular expression or may never end."""
    try:
        bounded = is_bounded(whole, length)
    except re.error as error:
        raise CheckpointError(
            f"adapter_config.json: {key} {pattern[:60]!r} is no regular expression: {error}"
        ) from error
    if not bounded:
        raise CheckpointError(f"adapter_config.json: {key} has a pattern that may never end: {pattern[:60]!r}")


def is_adapted(config: Mapping[str, object], module: str) -> bool:
    """Whether peft puts factors on `module`, by its own rules for a config that has passed the checks here."""
    return not _is_left_out(config, module) and _is_targeted(config, module)


def _is_left_out(config: Mapping[str, object], module: str) -> bool:
    left = config.get("exclude_modules")
    if isinstance(left, str) and left and re.fullmatch(left, module):
        return True
    if isinstance(left, list) and _ends_in(module, left):
        return True
    saved = _listed(config.get("modules_to_save"))
    return any(_searched(rf"(^|.*\.){name}($|\..*)", name, "modules_to_save", module) for name in saved)


def _is_targeted(config: Mapping[str, object], module: str) -> bool:
    targets = config.get("target_modules")
    if targets is None or str(targets).lower() == ALL_LINEAR:  # peft asks the base
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return isinstance(targets, list) and (
        module in targets or (_ends_in(module, targets) and _in_layers(config, module))
    )


def _in_layers(config: Mapping[str, object], module: str) -> bool:
    layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    if layers in (None, []):
        return True
    if not pattern:
        found = re.match(r".*?\.[^.]*\.(\d{1,9})\.", module)
    else:
        tried = (
            _searched(rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\.", name, "layers_pattern", module)
            for name in _listed(pattern)
        )
        found = next((match for match in tried if match), None)
    return found is not None and int(found["idx" if pattern else 1]) in (
        layers if isinstance(layers, list) else [layers]
    )


def _searched(whole: str, pattern: str, key: str, module: str) -> re.Match[str] | None:
    check_pattern(whole, pattern, key, len(module))
    return re.match(whole, module)


def _listed(value: object) -> list[str]:
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]


def _ends_in(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
