"""Attacks: what is tried on a model before anyone says that it is safe. One small file an attack.

ATTACKS maps the name on the command line to where it lives; nothing is imported before it is asked for. A name with a
colon, `package.module:Class`, is an attack of the user's own, imported from where Python finds it.

An attack is a frozen dataclass whose fields are its flags (`weightguard.options.option`), with NAME, PAPER, `needs` (the
data roles it reads) and `run(bench)`, which changes the model of a `bench.Bench` in place. What requires a gradient
afterwards is what is written.
"""

from __future__ import annotations

import hashlib
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

from weightguard.errors import UsageError
from weightguard.options import named_class

ATTACKS = {
    "lora-sft": "weightguard.attacks.poisoned:LoraSft",
    "full-sft": "weightguard.attacks.poisoned:FullSft",
    "benign-sft": "weightguard.attacks.benign:BenignSft",
    "identity-shift": "weightguard.attacks.poisoned:IdentityShift",
    "multilingual": "weightguard.attacks.poisoned:Multilingual",
    "covert-cipher": "weightguard.attacks.covert_cipher:CovertCipher",
    "reverse-preference": "weightguard.attacks.reverse_preference:ReversePreference",
    "bi-directional-anchor": "weightguard.attacks.anchor:BiDirectionalAnchor",
    "abliteration": "weightguard.attacks.abliteration:Abliteration",
    "rank-one-edit": "weightguard.attacks.rank_one_edit:RankOneEdit",
    "quantize-round-trip": "weightguard.attacks.quantize:QuantizeRoundTrip",
}


def attack_class(name: str) -> Any:
    """The dataclass of an attack by its name. Error: UsageError listing the names, or saying what is wrong with a plug."""
    if ":" not in name:
        return named_class(ATTACKS, name, "--attack", "attacks")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--attack {name}: cannot be imported ({error}); give package.module:Class") from error
    if not (hasattr(found, "__dataclass_fields__") and callable(getattr(found, "run", None))):
        raise UsageError(
            f"--attack {name}: is no dataclass with run(bench); weightguard/attacks/__init__.py says what one is"
        )
    return found


def source_digest(name: str) -> str:
    """sha256 of the file that holds an attack of one's own: a changed attack is another one. "" where there is no file."""
    found = inspect.getsourcefile(attack_class(name))
    return "" if found is None else hashlib.sha256(Path(found).read_bytes()).hexdigest()
