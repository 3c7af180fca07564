"""From what a user types after --judge to a judge."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from weightguard.checkpoint import Checkpoint, open_checkpoint, resolve
from weightguard.errors import UsageError
from weightguard.measurement import judge_id
from weightguard.validate.judges import phrases, words
from weightguard.validate.judges.ruling import Judge

_CHECKPOINTS = ("llama-guard", "wildguard", "beaver-dam")
FORMS = (
    "refusal-phrases[:LIST], contains:FILE, CLASSIFIER[#LABEL], llama-guard:MODEL, wildguard:MODEL, beaver-dam:MODEL or "
    "http(s)://host/v1#model"
)


def choose(spec: str, *, dtype: str = "float32", device: str = "cpu", offline: bool = False) -> Judge:
    """The judge `spec` names (FORMS says how). Errors: UsageError, CheckpointError, DataError."""
    name = judge_id(spec)
    if spec.startswith(("http://", "https://")):
        from weightguard.validate.judges.endpoint import EndpointJudge

        return EndpointJudge(spec, name)
    kind, _, rest = ("", "", spec) if os.path.lexists(spec) else spec.partition(":")
    if kind == phrases.NAME and (rest or spec == kind):
        return phrases.PhraseJudge(rest or None)
    if kind == words.NAME and rest:
        return words.WordJudge(Path(rest), name)
    if rest and kind and kind not in _CHECKPOINTS:
        raise UsageError(f"--judge {spec}: no judge of that kind; give {FORMS}")
    return _checkpoint(kind if rest else "", rest or spec, name, dtype, device, offline)


def _checkpoint(form: str, place: str, name: str, dtype: str, device: str, offline: bool) -> Judge:
    where, _, labels = (place, "", "") if os.path.lexists(place) else place.partition("#")
    checkpoint = open_checkpoint(resolve(where, offline=offline))
    revision = checkpoint.revision or _digest(checkpoint)
    if form in ("llama-guard", "wildguard"):
        from weightguard.validate.judges.guard import GuardJudge

        return GuardJudge(checkpoint, name, revision, form, dtype=dtype, device=device)
    if not _classifies(checkpoint):
        raise UsageError(
            f"--judge {name}: no classifier; of a causal guard model say its prompt format: llama-guard: or wildguard:"
        )
    from weightguard.validate.judges.classifier import ClassifierJudge

    given = [label for label in labels.split(",") if label]
    return ClassifierJudge(checkpoint, name, revision, form=form, labels=given, dtype=dtype, device=device)


def _classifies(checkpoint: Checkpoint) -> bool:
    named = checkpoint.config.get("architectures")
    return isinstance(named, list) and any(str(each).endswith("ForSequenceClassification") for each in named)


def _digest(checkpoint: Checkpoint) -> str:
    from weightguard.checkpoint.digests import file_digests

    found = file_digests(checkpoint.directory)
    said = "\n".join(f"{name} {digest}" for name, digest in sorted(found.items()))
    return f"sha256:{hashlib.sha256(said.encode()).hexdigest()[:16]}"
