"""What methods that act on neurons share: the parts they can use, and a Mask edit of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weightguard import bits
from weightguard.errors import UsageError
from weightguard.methods.inputs import Inputs

if TYPE_CHECKING:
    from weightguard.plan import Mask

MASKED = ("entries", "rows", "columns")


def mask_edits(method: str, inputs: Inputs, of: str) -> tuple[dict[str, Mask], dict[str, dict[str, Any]]]:
    """Edits and evidence by tensor; whole rows and columns become entries. Error: UsageError."""
    from weightguard.plan import Mask

    parts = usable_parts(method, inputs, MASKED)
    edits = {name: Mask(name, of, bits.packed(part.entries())) for name, part in parts.items()}
    return edits, {name: said_of(inputs, name) | {"selected": part.selected} for name, part in parts.items()}


def usable_parts(method: str, inputs: Inputs, forms: tuple[str, ...]) -> dict[str, Any]:
    """The neurons' parts by tensor, of the tensors in scope. Error: UsageError when a form is wrong or none is left."""
    assert inputs.neurons is not None
    found = {name: part for name, part in inputs.neurons.parts.items() if name in inputs.linears}
    if not found:
        raise UsageError("the neurons mark no tensor that may be edited; give --scope all, or find them again")
    wrong = next((part.form for part in found.values() if part.form not in forms), None)
    if wrong is not None:
        raise UsageError(
            f"--neurons holds parts of form {wrong} (kind {inputs.neurons.kind}); --method {method} takes {', '.join(forms)}"
        )
    return found


def said_of(inputs: Inputs, name: str) -> dict[str, Any]:
    """Layer, role and logical shape."""
    assert inputs.neurons is not None
    linear = inputs.linears[name]
    return {"layer": linear.layer, "role": linear.role, "shape": list(inputs.neurons.parts[name].shape)}
