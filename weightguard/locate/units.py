"""Units: whole rows or columns of a linear, or attention heads, which lie in several linears at once.

rows: every output unit of q, k, v, gate, up (a row) and every input unit of o and down (a column), ranked among the units
of its own tensor. heads: a head is its rows of q, k and v and its columns of o, ranked among the heads of its layer;
where query heads share keys and values (GQA), the unit is a key-value head with all its query heads, since nothing
smaller can be taken out of k and v. Biases are not counted to a unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from weightguard.errors import UnsupportedError, UsageError
from weightguard.locate.material import Material
from weightguard.locate.scores import Opener
from weightguard.parts import Part

if TYPE_CHECKING:
    import numpy

UNITS = ("rows", "heads")
_ATTENTION = ("q", "k", "v", "qkv", "o")


@dataclass(frozen=True, eq=False)
class Member:
    """A tensor's part in a group: `owner` (out,) or (in,) is the unit to which each row, or column, belongs."""

    form: str
    owner: numpy.ndarray
    shape: tuple[int, int]

    def per_unit(self, per_line: numpy.ndarray, count: int) -> numpy.ndarray:
        """Sums over the rows or columns of each unit, float64 (count,)."""
        import numpy

        return numpy.bincount(self.owner, weights=per_line, minlength=count)


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are ranked together: `count` of them, spread over the tensors `members`."""

    count: int
    members: Mapping[str, Member]

    def total(self, per_line: Mapping[str, numpy.ndarray]) -> numpy.ndarray:
        """Sums over all lines of each unit, in all its tensors; per_line: a value for each row or column of a tensor."""
        import numpy

        return numpy.sum([m.per_unit(per_line[n], self.count) for n, m in self.members.items()], axis=0)


def default_group(units: str) -> str:
    """A layer has few heads, so their shares are of all; entries and rows are many in every tensor."""
    return "global" if units == "heads" else "matrix"


def unit_groups(material: Material, units: str) -> dict[str, Group]:
    """Groups by name. Errors: UsageError when there is no attention in scope, UnsupportedError for heads that do not fit."""
    if units == "rows":
        return {name: _lines(material, name) for name in material.linears}
    layers: dict[str, dict[str, Member]] = {}
    from weightguard.checkpoint import family_of

    if not family_of(material.checkpoint.config).heads_apart:
        raise UnsupportedError("--units heads: this architecture mixes heads in its q, k and v; give --units rows")
    heads, shared = _head_counts(material)
    for name, linear in material.linears.items():
        if linear.role in _ATTENTION:
            owner = _head_owner(material, name, heads, shared)
            form = "columns" if linear.role == "o" else "rows"
            layers.setdefault(f"layer {linear.layer}", {})[name] = Member(form, owner, material.shape(name))
    if not layers:
        raise UsageError("--units heads: no tensor of attention is in --scope; give scope all or q,k,v,o")
    return {name: Group(shared, members) for name, members in layers.items()}


def _lines(material: Material, name: str) -> Group:
    import numpy

    shape = material.shape(name)
    form = "columns" if material.linears[name].writes else "rows"
    size = shape[form == "columns"]
    return Group(size, {name: Member(form, numpy.arange(size), shape)})


def _head_counts(material: Material) -> tuple[int, int]:
    """(query heads, key-value heads)."""
    from weightguard.statistics.loading import model_config

    config = model_config(material.checkpoint).get_text_config()
    heads = config.num_attention_heads
    return heads, getattr(config, "num_key_value_heads", None) or heads


def _head_owner(material: Material, name: str, heads: int, shared: int) -> numpy.ndarray:
    """Key-value head of each row of q, k, v or qkv, or of each column of o. Query heads of one group lie side by side."""
    import numpy

    out, width = material.shape(name)
    role = material.linears[name].role
    lines = width if role == "o" else out
    parts = (heads, shared, shared) if role == "qkv" else (heads,) if role in ("q", "o") else (shared,)
    if lines % sum(parts) or heads % shared:
        raise UnsupportedError(f"tensor {name!r}: {lines} units do not divide into {heads} heads ({shared} key-value)")
    size = lines // sum(parts)
    return numpy.concatenate([numpy.repeat(numpy.arange(shared), size * part // shared) for part in parts])


def unit_scores(material: Material, groups: Mapping[str, Group], opener: Opener) -> dict[str, numpy.ndarray]:
    """Sum of the entry scores of every unit, float64 (count,) a group.

    Sums compare over all groups: a row of q, k, v, gate, up and a column of o, down have `hidden` entries each.
    """
    found = {}
    for done, (label, group) in enumerate(groups.items(), 1):
        found[label] = group.total({n: _line_sums(opener, n, m.form) for n, m in group.members.items()})
        material.progress("select", done, len(groups))
    return found


def _line_sums(opener: Opener, name: str, form: str) -> numpy.ndarray:
    """Sums of the entry scores of each row or column, in float64 and in a fixed order."""
    import numpy
    import torch

    from weightguard.kernels import ops

    keys, shape = opener(name)
    sums = numpy.zeros(shape[form == "columns"])
    for start, stop in ops.tiles(shape):
        block = keys(start, stop).view(torch.float32).double()
        if form == "rows":
            sums[start:stop] = ops.row_sums(block).numpy()
        else:
            sums += ops.row_sums(block.T).numpy()
    return sums


def top_units(scores: Mapping[str, numpy.ndarray], share: Decimal, group: str, flag: str) -> dict[str, numpy.ndarray]:
    """Bool (count,) a group: the top share of the units of each group ("matrix") or of all ("global"), ties by index.

    Error: UsageError when a positive share takes no unit.
    """
    import numpy

    from weightguard.statistics.selection import count

    if group == "row":
        raise UsageError("--group row ranks the entries of a row; with --units give matrix or global")
    joined = {"all": sorted(scores, key=str.encode)} if group == "global" else {name: [name] for name in scores}
    found: dict[str, numpy.ndarray] = {}
    for names in joined.values():
        flat = numpy.concatenate([scores[name] for name in names])
        mask = numpy.zeros(flat.size, bool)
        mask[numpy.argsort(-flat, kind="stable")[: count(share, flat.size, "exact")]] = True
        cuts = numpy.cumsum([scores[name].size for name in names])[:-1]
        found |= dict(zip(names, numpy.split(mask, cuts), strict=True))
    if share and not any(mask.any() for mask in found.values()):
        smallest = min(each.size for each in scores.values())
        of_all = sum(each.size for each in scores.values())
        said = f"{of_all} units; give" if group == "global" else f"{smallest} units; give --group global, or"
        raise UsageError(f"--{flag} {share} selects not one of {said} a larger share")
    return {name: found[name] for name in scores}


def unit_parts(groups: Mapping[str, Group], chosen: Mapping[str, numpy.ndarray]) -> dict[str, Part]:
    """The parts that mark the chosen units; tensors without one are left out."""
    parts = {}
    for label, group in groups.items():
        if chosen[label].any():
            for name, member in group.members.items():
                parts[name] = Part.of_units(member.form, chosen[label][member.owner], member.shape)
    return parts


def counted_units(material: Material, groups: Mapping[str, Group], chosen: Mapping[str, Any]) -> dict[str, int]:
    """Chosen units by role of the tensor they lie in; "head" for those that lie in several."""
    found: dict[str, int] = {}
    for label, group in groups.items():
        names = list(group.members)
        role = "head" if label not in material.linears else material.linears[names[0]].role
        found[role] = found.get(role, 0) + int(chosen[label].sum())
    return found
