"""The model card of an output: what was done, in plain words, and the line that does it again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightguard.checkpoint import front_matter
from weightguard.rewrite.manifest import Manifest

# A base named by a place on somebody's disk says nothing to a reader, and would change the card from machine to machine.
_LOCAL_BASE = re.compile(r"""base_model:\s*["']?(?:[/~.]|[A-Za-z]:\\)""")
_WORDS = {
    "delta": "entries of the fine-tuning update W_tuned - W_aligned went back to the aligned model's value",
    "weight": "entries of the weights were set to zero",
    "factor": "entries of the adapter's LoRA factors were set to zero",
}
_SCALED = {
    "delta": "the fine-tuning update W_tuned - W_aligned was scaled down as a whole",
    "weight": "the weights were scaled down as a whole",
    "factor": "the adapter's lora_B factors were scaled down as a whole",
}
_REPAIRED = "Repaired with weightguard"
_TITLES = {"finetune": "Fine-tuned with weightguard", "attack": "Attacked with weightguard"}
_CAUTION = (
    "A repair restores behaviour on what it was calibrated for; it is no proof of safety. Evaluate before release."
)
_CAUTIONS = {
    "finetune": "Fine-tuning moves alignment, guarded or not. Evaluate before release.",
    "attack": "Attacked on purpose, to test a model or a safeguard. Not for use, and not for release.",
}
_DONE = {"finetune": "the weights were trained on new data", "attack": "the safeguards of the weights were attacked"}


def model_card(manifest: Manifest, source: Path) -> bytes:
    """README.md of the output. The original card's front matter and text are kept below ours."""
    data = manifest.data
    _, front, body = front_matter(source)
    front = "\n".join(line for line in front.splitlines() if not _LOCAL_BASE.match(line))
    total = totals(manifest)
    lines = [
        *(["---", front.strip("\n"), "---", ""] if front.strip() else []),
        f"# {_TITLES.get(data['method'], _REPAIRED)}",
        "",
        f"Method: `{data['method']}` ({data['paper']}), target `{data['target']}`.",
        f"What was done: {_what(data)}.",
        "",
        f"- tensors edited: {total['tensors']} of {len(manifest.outputs['tensors'])}",
        f"- entries changed: {total['changed']} of {total['entries']} in those tensors ({_percent(total)})",
        f"- options: {', '.join(f'{key} = {value}' for key, value in data['options'].items())}",
        *(f"- {note}" for note in data.get("notes", [])),
        "",
        _CAUTIONS.get(data["method"], _CAUTION),
        "",
        "## Reproduce",
        "",
        "```",
        data["command"],
        "weightguard verify OUT --against MODEL",
        "```",
        "",
        "MODEL, OUT and the other placeholders stand for the inputs whose digests are in `weightguard.json`.",
        *(["", "## The card of the input", "", body.strip("\n")] if body.strip() else []),
    ]
    return ("\n".join(lines) + "\n").encode()


def _what(data: Mapping[str, Any]) -> str:
    if data["method"] in _DONE:
        return _DONE[data["method"]]
    if any(edit.get("edit") == "replace" for edit in data["edits"].values()):
        return "the edited linears were computed anew as a whole"
    words = _SCALED if data["method"] == "scale" else _WORDS
    return words.get(data["target"], "see weightguard.json")


def adapter_card(manifest: Manifest) -> bytes:
    """README.md of an adapter that was made here. A base on the hub is named; one on somebody's disk is not."""
    data = manifest.data
    base = data["inputs"]["model"].get("repo")
    front = ["---", "library_name: peft", *([f"base_model: {base}"] if base else []), "---", ""]
    options = ", ".join(f"{key} = {value}" for key, value in data["options"].items())
    notes = [f"- {note}" for note in data.get("notes", [])]
    title, caution = _TITLES.get(data["method"], _REPAIRED), _CAUTIONS.get(data["method"], _CAUTION)
    lines = [*front, f"# {title}", "", f"A LoRA adapter for peft. Options: {options}", "", *notes, "",
             caution, "", "## Reproduce", "", "```", data["command"],
             *(["weightguard verify OUT --against MODEL"] if manifest.factors else []), "```", ""]  # fmt: skip
    return "\n".join(lines).encode()


def _percent(total: Mapping[str, int]) -> str:
    return f"{100 * total['changed'] / total['entries']:.4g} %" if total["entries"] else "none"


def totals(manifest: Manifest) -> dict[str, int]:
    """Sums over the edited tensors: how many, their entries, selected and changed."""
    edits = manifest.edits.values()
    return {"tensors": len(edits)} | {k: sum(e[k] for e in edits) for k in ("entries", "selected", "changed")}
