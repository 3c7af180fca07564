"""Utility by tasks of lm-evaluation-harness (the extra [eval]), one value a document, so that it gets n and an interval.

`TASK[:METRIC]`: a task or group that lm-eval ships, or a task file (.yaml). A file is read as plain YAML: a tag that
names code (`!function`) or an `include` is refused, as code beside a checkpoint is never followed. Without METRIC it is
the first of the task whose values lie between 0 and 1. Documents of a group count one by one, whatever weights it names.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightguard.errors import DataError, UsageError
from weightguard.validate.evaluation import Side
from weightguard.validate.metrics.rows import Rows

_FILES = (".yaml", ".yml")
_PIECE = 8  # batches between two reports of progress
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """One task or group, opened: `loaded` is what lm-eval made of it. metric: the one asked for, None for the first."""

    name: str
    metric: str | None
    loaded: Any

    @property
    def parts(self) -> dict[str, Any]:
        """The tasks in it by name, one where it is no group."""
        found: dict[str, Any] = self.loaded["tasks"]
        return found


@dataclass(frozen=True)
class Harness:
    """How tasks are run: see evaluation.Settings."""

    batch_size: int = 32
    limit: int | None = None
    seed: int = 0


def open_tasks(specs: Sequence[str]) -> list[Task]:
    """Every task with its documents, before any model is loaded. Errors: UsageError without the extra, for an unknown task
    or one given twice; DataError for a damaged file or documents that cannot be read."""
    if not specs:
        return []
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--lm-eval needs lm-eval, the extra [eval]: pip install 'weightguard[eval]' ({error})"
        ) from error
    found = [_opened(spec) for spec in specs]
    names = [task.name for task in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--lm-eval {twice}: given twice; give it once")
    return found


def task_rows(side: Side, task: Task, harness: Harness, progress: Progress) -> Rows:
    """`utility` of a model: the metric of each document, in their order. Error: DataError for a metric that is no share."""
    import lm_eval

    chat = getattr(side.tokenizer, "chat_template", None) is not None
    with _quiet() as outside:
        watched = _watched(side, harness, task, lambda *said: outside(progress, *said))
        try:
            said = lm_eval.evaluate(lm=watched, task_dict=task.loaded, limit=harness.limit, bootstrap_iters=0,
                                    apply_chat_template=chat, fewshot_as_multiturn=chat, log_samples=True)  # fmt: skip
        except Exception as error:  # a task is a program: templates, filters and metrics fail in every way there is
            raise DataError(f"--lm-eval {task.name}: lm-eval fails: {_line(error)}") from error
    documents = [sample for name in task.parts for sample in _of_one_filter(said["samples"][name])]
    metric = task.metric or _first_share(task, documents)
    values = [_value(task, sample, metric) for sample in documents]
    return Rows("utility", values, _digest(documents), f"lm-eval:{task.name}:{metric}", _revision(task, chat))


def _opened(spec: str) -> Task:
    from lm_eval.tasks import TaskManager

    place, metric = spec, None
    if not os.path.lexists(spec):
        place, _, metric = spec.partition(":")
    is_file = place.endswith(_FILES)
    given: Any = _config(Path(place)) if is_file else place
    name = given["task"] if is_file else place
    with _quiet():
        try:
            manager = TaskManager(include_defaults=not is_file)
            if not is_file and place not in manager.all_tasks:
                raise UsageError(f"--lm-eval {place}: lm-eval has no such task, and it is no .yaml file")
            loaded = manager.load([given])
            for task in loaded["tasks"].values():
                _check_documents(name, task)
        except (UsageError, DataError):
            raise
        except Exception as error:  # as above, and data sets may be anywhere
            raise DataError(f"--lm-eval {name}: lm-eval cannot open it: {_line(error)}") from error
    return Task(name, metric or None, loaded)


def _config(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise DataError(f"--lm-eval {path}: no such file")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        hint = "; a task file that names code is not followed" if "!function" in str(error) else ""
        raise DataError(f"--lm-eval {path.name}: not plain YAML: {_line(error)}{hint}") from error
    if not isinstance(found, dict) or not isinstance(found.get("task"), str):
        raise DataError(f"--lm-eval {path.name}: no task in it; it must have task: NAME")
    if "include" in found:
        raise DataError(f"--lm-eval {path.name}: include is not followed; write the task out")
    return found


def _check_documents(name: str, task: Any) -> None:
    if not len(task.eval_docs):
        raise DataError(f"--lm-eval {name}: {task.config.task} has no documents")


def _watched(side: Side, harness: Harness, task: Task, progress: Progress) -> Any:
    """The model as lm-eval wants it, which reports its progress; requests go to it in pieces."""
    from lm_eval.models.huggingface import HFLM

    class Watched(HFLM):
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._in_pieces(super().loglikelihood, requests)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._in_pieces(super().loglikelihood_rolling, requests)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._in_pieces(super().generate_until, requests)

        def _in_pieces(self, ask: Callable[..., list[Any]], requests: list[Any]) -> list[Any]:
            found: list[Any] = []
            for at in range(0, len(requests), _PIECE * harness.batch_size):
                found += ask(requests[at : at + _PIECE * harness.batch_size], disable_tqdm=True)
                progress(side.stage(f"answers {task.name}"), len(found), len(requests))
            return found

    for each in task.parts.values():
        if each.get_config("num_fewshot") is None:
            each.set_config(key="num_fewshot", value=0)
        each.set_fewshot_seed(seed=harness.seed)
    return Watched(pretrained=side.model, tokenizer=side.tokenizer, batch_size=harness.batch_size)


def _of_one_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One entry a document: a task with several filters has as many, and the first of them is the one it is known by."""
    kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    return sorted(kept, key=lambda sample: sample["doc_id"])


def _first_share(task: Task, documents: Sequence[Mapping[str, Any]]) -> str:
    for metric in documents[0]["metrics"]:
        if all(_is_share(sample.get(metric)) for sample in documents):
            return str(metric)
    raise DataError(
        f"--lm-eval {task.name}: none of its metrics ({', '.join(documents[0]['metrics'])}) is a share of a document; "
        f"utility is one"
    )


def _value(task: Task, sample: Mapping[str, Any], metric: str) -> float:
    if not _is_share(sample.get(metric)):
        known = ", ".join(sample["metrics"])
        raise DataError(
            f"--lm-eval {task.name}:{metric}: no metric with a value from 0 to 1 of every document; it has {known}"
        )
    return float(sample[metric])


def _is_share(value: Any) -> bool:
    try:
        return 0.0 <= float(value) <= 1.0
    except (TypeError, ValueError):
        return False


def _digest(documents: Sequence[Mapping[str, Any]]) -> str:
    said = "".join(f"{sample['doc_hash']}{sample['target_hash']}{sample['prompt_hash']}" for sample in documents)
    return hashlib.sha256(said.encode()).hexdigest()


def _revision(task: Task, chat: bool) -> str:
    """lm-eval's version, and a digest of what the tasks say, their few-shot count and the template in it."""
    from importlib.metadata import version

    said = [each.dump_config() for each in task.parts.values()]
    raw = json.dumps(
        [said, chat], sort_keys=True, default=lambda value: getattr(value, "__name__", type(value).__name__)
    )
    return f"lm-eval {version('lm-eval')} task {hashlib.sha256(raw.encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def _quiet() -> Iterator[Callable[..., None]]:
    """lm-eval's bars and chatter off for a while. Yields a way to call something that may still write to stderr."""
    before, level = sys.stderr, logging.root.manager.disable

    def outside(call: Callable[..., None], *given: Any) -> None:
        with contextlib.redirect_stderr(before):
            call(*given)

    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield outside
    finally:
        logging.disable(level)


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
