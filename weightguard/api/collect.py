"""Calibration data to statistics: read rows, tokenise, run the model once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from weightguard.api.memory import fit_walk, give_back_at_once
from weightguard.api.subject import Subject
from weightguard.checkpoint import FLOATS
from weightguard.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy

    from weightguard.data import Dataset, Encoded, EncodedSet
    from weightguard.statistics.norms import InputNorms

Progress = Callable[[str, int, int], None]
PUBLISHED = "PKU-Alignment/BeaverTails"


@dataclass(frozen=True)
class Running:
    """How models are run: device, dtype of the forward pass, torch threads (None: every core this process may use).

    max_memory: bytes of anonymous memory that the process may hold, None: no limit.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    max_length: int = 2048
    max_memory: int | None = None

    @property
    def thread_count(self) -> int:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads}: must be at least 1")
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def words(self) -> list[str]:
        """What changes the numbers, as on the command line, where it is not the default."""
        given = {"--dtype": (self.dtype, Running.dtype), "--max-length": (self.max_length, Running.max_length)}
        return [word for flag, (value, usual) in given.items() if value != usual for word in (flag, str(value))]


def rows_of(reference: str | None, limit: int | None, kind: str) -> tuple[Dataset, str]:
    """The rows of a data reference, or of the shipped rows of `kind`, and a note that says where they came from."""
    from weightguard.data import read_rows

    if reference is not None:
        dataset = read_rows(reference, limit=limit)
        return dataset, f"{kind} data: {dataset.source}, {len(dataset.rows)} rows"
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1")
    dataset, said = _shipped(kind)
    dataset = replace(dataset, rows=dataset.rows[:limit])
    return dataset, f"{kind} data: none given, so the {len(dataset.rows)} prompts shipped with weightguard ({said}"


def _shipped(kind: str) -> tuple[Dataset, str]:
    """Shipped rows, and the end of what is said of them."""
    from weightguard.data import shipped_harmful, shipped_identity, shipped_multilingual, shipped_safety

    published = f"); for the published set give --{kind} {PUBLISHED}"
    return {
        "harmful": lambda: (shipped_harmful(), f"generic requests with an affirmative opening{published}"),
        "safety": lambda: (shipped_safety(), f"generic requests with a refusal{published}"),
        "identity": lambda: (shipped_identity(), "dialogues with an agent that obeys)"),
        "multilingual": lambda: (shipped_multilingual(), "German, French and Spanish, with an affirmative opening)"),
    }[kind]()


def encoded(
    subject: Subject, reference: str | None, kind: str, tokens: str, limit: int | None, running: Running
) -> tuple[EncodedSet, str]:
    """Token ids of a data reference under the subject's tokenizer; a .safetensors is taken as pre-tokenised."""
    from weightguard.data import encode, read_pretokenised
    from weightguard.statistics.loading import load_tokenizer

    if reference is not None and reference.endswith(".safetensors"):
        if limit is not None:
            raise UsageError("--limit does not go with pre-tokenised data; cut the file instead")
        ready = read_pretokenised(reference, tokens=tokens)
        return ready, f"{kind} data: {ready.source}, {len(ready.rows)} pre-tokenised rows"
    dataset, note = rows_of(reference, limit, kind)
    tokenizer = load_tokenizer(*subject.directories)
    return encode(dataset, tokenizer, tokens=tokens, max_length=running.max_length), note


def collect(subject: Subject, data: EncodedSet, running: Running, progress: Progress) -> InputNorms:
    """Input norms of every decoder linear of the tuned model, and of its adapter's factors where it has one."""
    from weightguard.data import check_vocabulary
    from weightguard.statistics.forward import batch_size
    from weightguard.statistics.loading import dtype_of, pinned_threads
    from weightguard.statistics.norms import InputNorms
    from weightguard.statistics.streaming import streamed_square_sums
    from weightguard.statistics.walk import Walk

    def report(layer: int, layers: int, done: int, total: int) -> None:
        progress(f"calibrate: read (layer {layer} of {layers})", done, total)

    with pinned_threads(running.thread_count):
        if running.max_memory is not None:
            give_back_at_once()
        walk = Walk(
            subject.model, None, {"rows": data.rows}, dtype=running.dtype, device=running.device,
            batch_tokens=batch_size(dtype_of(running.dtype)), adapter=subject.adapter,
        )  # fmt: skip
        check_vocabulary(data, walk.vocabulary)
        fit_walk(walk, running)
        pairs = None if subject.adapter is None else subject.factor_pairs()
        sums = streamed_square_sums(walk, subject.model.config, subject.named, report, pairs)
    _check_finite(sums, subject)
    return InputNorms(sums, data.counted_tokens, facts_of(data, subject, running))


def _check_finite(sums: Mapping[str, numpy.ndarray], subject: Subject) -> None:
    """Statistics with NaN or infinity in them come from such weights, which are then named, or from the dtype."""
    import numpy

    if all(numpy.isfinite(each).all() for each in sums.values()):
        return
    check_weights(subject)
    raise DataError(f"{subject.model.label}: the forward pass ends in NaN or infinity; give --dtype float32 or float64")


def check_weights(subject: Subject) -> None:
    """Read every tensor for NaN and infinity. Error: CheckpointError naming one."""
    from weightguard.weights import finite

    for part in (subject.model, *([subject.adapter] if subject.adapter else [])):
        for info in part.tensors.values():
            if info.dtype in FLOATS:
                finite(part, info.name)


def facts_of(data: EncodedSet, subject: Subject, running: Running) -> dict[str, Any]:
    """What statistics and manifests record of the data and of the run that used them."""
    return {
        "data": {"source": data.source, "sha256": data.sha256, "rows": len(data.rows)},
        "tokens": data.tokens,
        "template": data.template,
        "template_sha256": data.template_sha256,
        "total_tokens": data.total_tokens,
        "truncated_rows": data.truncated,
        "rows_without_response": data.without_response,
        "dtype": running.dtype,
        "threads": running.thread_count,
        "model_headers": header_digest(subject),
    }


def header_digest(subject: Subject) -> str:
    """sha256 of the headers of every shard: names, shapes and dtypes."""
    parts = [subject.model, *([subject.adapter] if subject.adapter else [])]
    raw = b"".join(header.raw for part in parts for header in part.headers.values())
    return hashlib.sha256(raw).hexdigest()


def check_disjoint(safety: EncodedSet, other: EncodedSet, what: str) -> None:
    """What both sets hold would count for both. Error: DataError naming a row of each; `what` says which sets they are."""
    prompts = {_prompt(row): row.number for row in other.rows}
    shared = next((row for row in safety.rows if _prompt(row) in prompts), None)
    if shared is not None:
        raise DataError(
            f"row {shared.number} of {safety.source} and row {prompts[_prompt(shared)]} of {other.source} have the same "
            f"prompt; {what} must share none"
        )


def _prompt(row: Encoded) -> bytes:
    """The ids before the answer; all of them where nothing, or everything, counts."""
    begin = int(row.counted.argmax()) or len(row.ids)
    return row.ids[:begin].tobytes()
