"""Keys of JSON configs that can make transformers or peft run code that is not their own.

Each has done so in some version, `trust_remote_code=False` or not: CVE-2026-4372 went through
`_attn_implementation_internal`, CVE-2026-5241 through a `trust_remote_code` in the config itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable

CODE_KEYS = (
    "auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "_attn_implementation_internal",
    "_experts_implementation_internal", "kernel_config",
)  # fmt: skip
# Runtime choices: a plain word is one of the library's own, anything else may be a repository of the hub.
_CHOICES = (
    "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation", "use_kernels",
)  # fmt: skip
_WORD = re.compile(r"\w+(?:\|\w+)?", re.ASCII)
# What peft imports by name; an adapter without a task names the module of its own model.
_MODULES = {
    "auto_mapping": re.compile(r"transformers(\.\w+)*", re.ASCII),
    "megatron_core": re.compile(r"megatron\.core"),
}


def named_code(value: object) -> list[str]:
    """The keys that can name code in a JSON value, at any depth; each once, sorted."""
    found: set[str] = set()

    def odd(key: str, item: object) -> bool:
        found.update([key] if _names_code(key, item) else [])
        return False

    _without(odd, value)
    return sorted(found)


def without_code(value: object) -> object:
    """A JSON value without the keys that can name code, at any depth."""
    return _without(_names_code, value)


def without_choices(value: object) -> object:
    """The same without the runtime choices too: which kernel runs is not for a file to say."""
    return _without(lambda key, _: key in (*CODE_KEYS, *_CHOICES, *_MODULES), value)


def _without(odd: Callable[[str, object], bool], value: object) -> object:
    if isinstance(value, list):
        return [_without(odd, item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without(odd, item) for key, item in value.items() if not odd(key, item)}


def _names_code(key: str, value: object) -> bool:
    if key in CODE_KEYS:
        return True
    if key in _CHOICES:
        return not (value is None or isinstance(value, bool) or (isinstance(value, str) and _WORD.fullmatch(value)))
    if key not in _MODULES or value is None:
        return False
    module = value.get("parent_library") if isinstance(value, dict) else value
    return not (isinstance(module, str) and _MODULES[key].fullmatch(module))
