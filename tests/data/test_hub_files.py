"""Which references are hub ids, and which files of a hub data set hold a split."""

from __future__ import annotations

import pytest

from weightguard.data.hub import choose_files, is_hub_id
from weightguard.errors import DataError


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("org/name", True),
        ("org/name@main", True),
        ("org/name@refs/pr/1", True),
        ("org/rows.jsonl", False),
        ("name", False),
        ("a/b/c", False),
        ("./a", False),
        ("/a/b", False),
        ("org/name@", False),
    ],
)
def test_what_is_read_as_a_hub_id(ref: str, expected: bool) -> None:
    assert is_hub_id(ref) is expected


TAILS = [f"round0/{size}/{split}.jsonl.gz" for size in ("30k", "330k") for split in ("test", "train")]


@pytest.mark.parametrize(
    ("listed", "split", "expected"),
    [
        (TAILS, "30k_train", ["round0/30k/train.jsonl.gz"]),
        (
            ["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"],
            None,
            ["train/0000.parquet", "train/0001.parquet"],
        ),
        (
            ["main/train-00000-of-00001.parquet", "socratic/train-00000-of-00001.parquet"],
            "main/train",
            ["main/train-00000-of-00001.parquet"],
        ),
        (["rows.json", "dataset_infos.json", ".cache/x.json", "notes.txt"], None, ["rows.json"]),
        (["train.csv", "TRAIN.jsonl"], "train.csv", ["train.csv"]),
        (["squad_v2.json", "squad_v1.json"], "squad_v2", ["squad_v2.json"]),
    ],
)
def test_files_of_a_split(listed: list[str], split: str | None, expected: list[str]) -> None:
    assert choose_files("org/name", listed, split) == tuple(expected)


@pytest.mark.parametrize(
    ("listed", "split", "told"),
    [
        (
            TAILS,
            "train",
            "split 'train' cannot be told from its files; name one split of: round0/30k/train, round0/330k/train",
        ),
        (["a.json", "b.json"], None, "the rows to use cannot be told from its files; name one split of: a, b"),
        (["a.json"], "test", "split 'test' cannot be told from its files; name one split of: a"),
    ],
)
def test_an_ambiguous_or_unknown_split_lists_what_is_there(listed: list[str], split: str | None, told: str) -> None:
    with pytest.raises(DataError) as caught:
        choose_files("org/name", listed, split)
    assert str(caught.value) == f"org/name: {told}"
