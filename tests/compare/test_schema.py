"""What is printed as JSON against the JSON Schema that is shipped, and the schema against what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from weightguard import api
from weightguard.lab import Lab

SCHEMAS = {name: json.loads(api.schema(name)) for name in ("comparison", "activations")}


def valid(found: Any, name: str = "comparison") -> dict[str, Any]:
    """The JSON of it, as a strict reader has it."""
    said = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    jsonschema.Draft202012Validator(SCHEMAS[name]).validate(said)
    return said


def fields(schema: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every property there is, with its schema."""
    if isinstance(schema, dict):
        for key, value in schema.get("properties", {}).items():
            yield f"{path}.{key}", value
        for key, value in schema.items():
            yield from fields(value, f"{path}.{key}")


@pytest.mark.parametrize("name", ["comparison", "activations"])
def test_the_schema_is_one_and_describes_every_field(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert not [path for path, field in fields(SCHEMAS[name]) if not field.get("description")]


def test_every_kind_of_change_is_valid(made: Callable, kinds: tuple[str, ...], tmp_path: Path) -> None:
    for number, kind in enumerate((*kinds, "unseen")):
        case = made(kind, 900_000 + number, "F32", 64, tmp_path / str(number))
        other = None if case.other is None else str(case.other)
        valid(api.compare(str(case.model), str(case.base), aligned=other, spectra=True))


def test_the_alignment_map_and_an_adapter_are_valid() -> None:
    lab = Lab(0)
    seen = {"base": str(lab.aligned()), "aligned": str(lab.aligned()), "unaligned": str(lab.base())}
    assert valid(api.compare(str(lab.attack_full()), **seen))["alignment"]["total"]["top_share"] > 0
    said = valid(api.compare(str(lab.attack_lora()), str(lab.aligned())))
    assert said["repair"]["commands"][0].startswith("weightguard repair ")


def test_what_was_zero_has_no_relative_size(edited_models: ModuleType, tmp_path: Path) -> None:
    maker = edited_models.Maker(1, 64)
    name = "model.layers.0.mlp.up_proj.weight"
    maker.base[name] = maker.base[name] * 0
    made = edited_models.written(maker, "unseen", "F32", tmp_path)
    said = valid(api.compare(str(made.model), str(made.base)))
    assert [t["relative"] for t in said["tensors"] if t["name"] == name] == [None]
    cells = [c["value"] for c in said["heat"] if (c["layer"], c["role"]) == (0, "up")]
    assert cells == [None]


def test_activations_are_valid(tmp_path: Path) -> None:
    lab = Lab(0)
    data = lab.write_data(tmp_path / "data")
    prompts = [str(data[role]) for role in ("evaluation_harmful", "evaluation_allowed")]
    for place in prompts:
        Path(place).write_text("".join(Path(place).read_text().splitlines(keepends=True)[:8]))
    for base in (None, str(lab.aligned())):
        said = valid(api.activations(str(lab.attack_full()), *prompts, base=base, threads=1), "activations")
        assert (said["layers"][1]["cosine"] is None) == (base is None)


@pytest.mark.parametrize(
    ("place", "value"), [("verdict", {"kind": "no such kind"}), ("relation", "akin"), ("version", 1)]
)
def test_a_wrong_output_is_seen(edited_models: ModuleType, tmp_path: Path, place: str, value: Any) -> None:
    made = edited_models.make("identical", 1, "F32", 64, tmp_path)
    said = valid(api.compare(str(made.model), str(made.base)))
    said[place] = said[place] | value if isinstance(value, dict) else value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(said, SCHEMAS["comparison"])
