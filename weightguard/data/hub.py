"""Data sets of the Hugging Face hub: which files hold a split, and bringing them here through huggingface_hub."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from weightguard.data.formats import PACKED, SUFFIXES, suffix_of
from weightguard.data.shapes import shown
from weightguard.errors import DataError, SystemFailure

BEAVERTAILS = "PKU-Alignment/BeaverTails"

_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^\s@]+))?", re.ASCII)
# train-00000-of-00002, train_0001, train/0000; not squad_v2 or data-2024, which are different sets.
_SHARD = re.compile(r"[-_./]?(\d+-of-\d+|0\d{2,5})$", re.ASCII)
_NOT_ROWS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})


@dataclass(frozen=True)
class HubSplit:
    """The files of one split (None: told from the files) at one commit; nothing is downloaded before `fetch`."""

    name: str
    commit: str
    split: str | None
    files: tuple[str, ...]

    @property
    def source(self) -> str:
        return f"{self.name}@{self.commit}"

    def fetch(self, file: str) -> str:
        """The local path of one file, downloaded where the cache lacks it. Raises DataError, SystemFailure."""
        from huggingface_hub import hf_hub_download

        with _hub_errors(self.name):
            return hf_hub_download(self.name, file, repo_type="dataset", revision=self.commit)


def is_hub_id(ref: str) -> bool:
    """`org/name` or `org/name@revision`; a name that ends like a data file is a path."""
    match = _ID.fullmatch(ref)
    return match is not None and suffix_of(match["name"]) is None


def open_hub(ref: str, split: str | None) -> HubSplit:
    """Resolve `org/name[@revision]` to a commit and the files of `split`.

    Raises DataError: no such data set or split, gated, several configurations. SystemFailure: offline, 429, 5xx.
    """
    match = _ID.fullmatch(ref)
    if match is None:
        raise DataError(f"{shown(ref)}: not a hub data set id; write org/name or org/name@revision")
    name, revision = match["name"], match["revision"]
    commit, listed = _listing(name, revision)
    if split is None and name == BEAVERTAILS:
        split = "30k_train"
    return HubSplit(name, commit, split, choose_files(name, listed, split))


def choose_files(name: str, listed: Iterable[str], split: str | None) -> tuple[str, ...]:
    """The data files of a split: those whose path holds the split's words side by side, all of one configuration.

    `30k_train` finds round0/30k/train.jsonl.gz, `main/train` finds main/train-00000-of-00002.parquet; a whole path
    names one file. Without a split: `train` where there is one, else the only group of files there is.
    """
    files = sorted(file for file in listed if _holds_rows(file))
    if not files:
        raise DataError(f"{name}: no data files ({' '.join((*SUFFIXES[:-1], *PACKED))}); convert it to one of them")
    if split in files:
        return (split,)
    chosen = [file for file in files if _has_words(file, split or "train")]
    if split is None and not chosen:
        chosen = files
    groups = sorted({_group(file) for file in chosen})
    if len(groups) != 1:
        raise _no_single_split(name, split, groups or sorted({_group(file) for file in files}))
    return tuple(chosen)


def _no_single_split(name: str, split: str | None, groups: list[str]) -> DataError:
    there = ", ".join(shown(_stem(group)) for group in groups[:8])
    more = f" and {len(groups) - 8} more" if len(groups) > 8 else ""
    wanted = "the rows to use" if split is None else f"split {shown(split)!r}"
    return DataError(f"{name}: {wanted} cannot be told from its files; name one split of: {there}{more}")


def _holds_rows(file: str) -> bool:
    base = posixpath.basename(file)
    hidden = any(part.startswith(".") for part in file.split("/"))
    return suffix_of(base) not in (None, ".txt") and base not in _NOT_ROWS and not hidden


def _group(file: str) -> str:
    """The path without its shard number: files that differ in nothing else belong together."""
    stem = _stem(file)
    return (_SHARD.sub("", stem) or stem) + file[len(stem) :]


def _stem(file: str) -> str:
    return file[: len(file) - len(suffix_of(file) or "")]


def _has_words(file: str, split: str) -> bool:
    words, wanted = _words(_stem(file)), _words(split)
    return any(words[at : at + len(wanted)] == wanted for at in range(len(words) - len(wanted) + 1))


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[/_.-]+", text.lower()) if word]


def _listing(name: str, revision: str | None) -> tuple[str, list[str]]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        with _hub_errors(name):
            info = HfApi().dataset_info(name, revision=revision)
    except SystemFailure as error:
        if isinstance(error.__cause__, OfflineModeIsEnabled):
            return _cached_listing(name, revision)
        raise
    if not info.sha:
        raise SystemFailure(f"{name}: the hub named no commit; try again")
    return info.sha, [sibling.rfilename for sibling in info.siblings or ()]


def _cached_listing(name: str, revision: str | None) -> tuple[str, list[str]]:
    """Offline: the one commit in the cache that `revision` means. Two commits are not ours to choose from."""
    found = [commit for commit in _cached_commits(name) if _means(commit, revision)]
    if not found:
        wanted = f"revision {shown(revision)} of it" if revision else "it"
        raise SystemFailure(f"{name}: offline, and the cache does not hold {wanted}; unset HF_HUB_OFFLINE to fetch it")
    if len(found) > 1:
        commits = ", ".join(sorted(commit.commit_hash for commit in found))
        raise DataError(f"{name}: offline, and the cache holds several commits; write {name}@COMMIT ({commits})")
    files = [file.file_path.relative_to(found[0].snapshot_path).as_posix() for file in found[0].files]
    return found[0].commit_hash, _with_all_shards(files)


def _cached_commits(name: str) -> list:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [
        commit for repo in repos if (repo.repo_type, repo.repo_id) == ("dataset", name) for commit in repo.revisions
    ]


def _means(commit, revision: str | None) -> bool:
    if revision is None:
        return True
    return revision in commit.refs or (len(revision) >= 7 and commit.commit_hash.startswith(revision))


def _with_all_shards(files: list[str]) -> list[str]:
    """The cache may hold a part of a split (a limit, an interrupted download): never take it for the whole."""
    complete = set(files)
    for file in files:
        if match := re.search(r"\d+(?=-of-(\d{1,6})\.)", file):
            width = len(match[0])
            complete |= {f"{file[: match.start()]}{n:0{width}}{file[match.end() :]}" for n in range(int(match[1]))}
    return sorted(complete)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """What huggingface_hub raises, as one line: refused or not there is the input's fault, the rest the system's."""
    from huggingface_hub import errors

    transport = getattr(errors, "HTTPError", OSError)  # of httpx or its successor, whichever the hub client uses
    try:
        yield
    except errors.HFValidationError as error:
        raise DataError(f"{name}: not a valid hub data set id; write org/name or org/name@revision") from error
    except (errors.EntryNotFoundError, OSError, transport, ValueError) as error:
        raise _explained(name, error) from error


def _explained(name: str, error: BaseException) -> DataError | SystemFailure:
    from huggingface_hub import errors

    cause = error if getattr(error, "response", None) is not None else error.__cause__
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, errors.GatedRepoError):
        return DataError(f"{name}: gated; accept its terms on the hub and log in (hf auth login)")
    if isinstance(cause, errors.RevisionNotFoundError):
        return DataError(f"{name}: no such revision on the hub; check what follows the @")
    if isinstance(cause, errors.RepositoryNotFoundError) or status in (401, 404):  # 401: the hub does not say which
        return DataError(f"{name}: no such data set or file on the hub, or not visible to you; check the id, or log in")
    if status == 403:
        return DataError(f"{name}: the hub refuses access (403); log in with a token that may read it (hf auth login)")
    if status is not None and status < 500 and status != 429:
        return DataError(f"{name}: the hub refuses the request ({status}); check the id")
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return SystemFailure(f"{name}: offline mode is on and the cache lacks it; unset HF_HUB_OFFLINE to fetch it")
    if isinstance(error, OSError) and error.errno and error.strerror:
        return SystemFailure(f"{name}: cannot be stored in the hub cache ({error.strerror}); see HF_HOME")
    said = f"answered {status}" if status else f"could not be reached or was cut off ({type(cause or error).__name__})"
    return SystemFailure(f"{name}: the hub {said}; try again later")
