"""Verbs that look into a model and leave it as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightguard.api.calling import Progress, silent, text

if TYPE_CHECKING:
    from weightguard.api.activating import Activations
    from weightguard.api.comparing import Comparison
    from weightguard.api.inspecting import Inspection
    from weightguard.api.locating import Located
    from weightguard.statistics.norms import InputNorms


def inspect(model: str, *, offline: bool = False, digests: bool = True, progress: Progress = silent) -> Inspection:
    """Tensors, shards, roles, dtypes, tied weights, digests and problems of a checkpoint, without torch.

    model: a directory, `org/name[@revision]` or MODEL+ADAPTER. Errors: CheckpointError, SystemFailure.
    """
    from weightguard.api.inspecting import run_inspect

    return run_inspect(str(model), offline=offline, digests=digests, progress=progress)


def compare(
    model: str,
    base: str | None = None,
    *,
    aligned: str | None = None,
    unaligned: str | None = None,
    spectra: bool = False,
    html: str | Path | None = None,
    force: bool = False,
    offline: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """What was changed in `model` since `base`, where, how, and how it lies to the alignment direction; no model is run.

    model: a directory, `org/name[@revision]`, an adapter or MODEL+ADAPTER. base: None for an adapter's own base, or
    `aligned`. html: also write the report there. Errors: CheckpointError, UsageError, OutputError, SystemFailure.
    """
    from weightguard.api.comparing import run_compare, write_page
    from weightguard.checkpoint.writer import check_directory, check_free

    if html is not None:
        check_free(Path(html), force=force)
        check_directory(Path(html))
    references = (text(base), text(aligned), text(unaligned))
    page = None if html is None else Path(html)
    found = run_compare(str(model), *references, spectra=spectra, offline=offline, progress=progress, page=page)
    if page is not None:
        write_page(found, page, force=force)
    return found


def activations(
    model: str,
    harmful: str,
    benign: str,
    *,
    base: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Activations:
    """The refusal direction of every layer on two sets of prompts: separation, overlap, and drift from `base`.

    harmful, benign: data references, at least 8 rows each. Errors: DataError, CheckpointError, UsageError.
    """
    from weightguard.api.activating import run_activations
    from weightguard.api.collect import Running

    running = Running(device, dtype, threads)
    return run_activations(str(model), harmful, benign, text(base), running, offline=offline, progress=progress)


def stats(
    model: str,
    *,
    data: str | None = None,
    tokens: str = "all",
    out: str | Path | None = None,
    force: bool = False,
    limit: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    max_length: int = 2048,
    max_memory: str | int | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> InputNorms:
    """Input norms of every decoder linear on `data` (None: the shipped harmful prompts), written to `out` if given.

    The model is run layer by layer; max_memory ("4GB", or bytes): the most anonymous memory that the process may hold,
    hidden states wait in a temporary file where they must. Errors: DataError, CheckpointError, UnsupportedError, OutputError.
    """
    from weightguard.api.collect import Running, collect, encoded
    from weightguard.api.memory import as_bytes
    from weightguard.api.subject import open_subject
    from weightguard.checkpoint.writer import check_free, write_file

    if out is not None:
        check_free(Path(out), force=force)
    running = Running(device, dtype, threads, max_length, as_bytes(max_memory))
    subject = open_subject(str(model), offline=offline, search=False, named=True)
    if out is not None:
        from weightguard.rewrite import check_apart

        check_apart(Path(out), subject.inputs)
    found, _ = encoded(subject, data, "harmful", tokens, limit, running)
    norms = collect(subject, found, running, progress)
    if out is not None:
        write_file(Path(out), norms.to_bytes(), force=force)
    return norms


def neurons(
    model: str,
    *,
    kind: str = "set-difference",
    safety: str | None = None,
    utility: str | None = None,
    like: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    limit: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    max_length: int = 2048,
    offline: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Located:
    """Find where safety lies in an aligned model: weights, units, ranks, or learning rates; written to `out` if given.

    safety: prompts with the aligned behaviour; a row without an answer gets the model's own. options: the fields of the
    kind (`weightguard.locate`). Errors: the tree in `weightguard.errors`.
    """
    from weightguard.api.collect import Running
    from weightguard.api.locating import Sets, run_neurons

    sets = Sets(safety, utility, text(like), limit)
    target = None if out is None else Path(out)
    running = Running(device, dtype, threads, max_length)
    return run_neurons(str(model), kind, options, sets, target, force, running, offline, progress)


def schema(name: str) -> str:
    """The JSON Schema of an output: `comparison` or `activations`."""
    from importlib import resources

    return resources.files("weightguard").joinpath(f"comparison/{name}.schema.json").read_text()
