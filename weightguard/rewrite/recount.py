"""Recount what a manifest says of an adapter that was made anew: how far it takes each linear from the models it came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from weightguard.checkpoint import Checkpoint, LoraPair, Merged
from weightguard.errors import MismatchError
from weightguard.rewrite.manifest import NAME, Manifest, identity
from weightguard.weights import Sources, Weights, distances, finite, open_weights

Progress = Callable[[int], None]
SAME = 1e-5  # numbers of a manifest have six digits


def recount_factors(output: Checkpoint, manifest: Manifest, before: Sources, progress: Progress) -> int:
    """How many linears lie as far from the aligned and the tuned model as the manifest says, energy kept included.

    Errors: MismatchError naming the tensor, or the model that is another; CheckpointError for NaN or infinity.
    """
    assert before.aligned is not None
    _check_models(manifest, before)
    pairs = Merged(before.aligned, output).pairs
    odd = sorted(pairs.keys() ^ manifest.factors.keys())
    if odd:
        raise MismatchError(f"tensor {odd[0]!r}: only one of {NAME} and the adapter speaks of it")
    for name, pair in pairs.items():
        found = _recounted(output, pair, open_weights(before, name, with_aligned=True))
        _check_said(name, found, manifest.factors[name])
        progress(output.info(pair.a).nbytes + output.info(pair.b).nbytes)
    return len(pairs)


def _recounted(output: Checkpoint, pair: LoraPair, weights: Weights) -> dict[str, float]:
    origin, tuned = weights.ends()
    product = pair.scaling * (finite(output, pair.b).double() @ finite(output, pair.a).double())
    kept = float(torch.linalg.vector_norm(product)) ** 2
    return {"energy_kept": kept, **distances(origin + product, origin, tuned)}


def _check_said(name: str, found: Mapping[str, float], said: Mapping[str, object]) -> None:
    for key, value in found.items():
        there = said.get(key)
        if not isinstance(there, float) or not math.isclose(value, there, rel_tol=SAME, abs_tol=1e-12):
            raise MismatchError(f"tensor {name!r}: {key} is {value:.6g}, {NAME} says {str(there)[:40]}")


def _check_models(manifest: Manifest, before: Sources) -> None:
    tuned = before.merged.adapter if before.merged else before.model
    for role, model in (("model", before.aligned), ("tuned", tuned)):
        assert model is not None
        said = manifest.data["inputs"].get(role)
        if not isinstance(said, dict) or said.get("files") != identity(model, whole=True)["files"]:
            raise MismatchError(f"{model.label} is not the {WORDS[role]} this adapter was made from")


WORDS = {"model": "aligned model", "tuned": "fine-tuned model"}
