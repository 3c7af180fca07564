"""Token ids from a .safetensors file: padding on either side means the same, anything doubtful is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightguard.data import check_vocabulary, read_pretokenised
from weightguard.errors import DataError, UsageError

ROWS = [[5, 6, 7], [8], [1, 2, 3, 4]]
ANSWERS = [[-100, 6, 7], [-100], [-100, -100, -100, 4]]


def _padded(rows: list[list[int]], fill: int, left: bool) -> np.ndarray:
    return np.array([[fill] * (4 - len(row)) + row if left else row + [fill] * (4 - len(row)) for row in rows])


def _arrays(left: bool = False) -> dict[str, np.ndarray]:
    real = [[1] * len(row) for row in ROWS]
    # the pad id is a real id too, and a pad's label is not ignored: only the mask may tell
    return {
        "input_ids": _padded(ROWS, 7, left),
        "attention_mask": _padded(real, 0, left),
        "labels": _padded(ANSWERS, 3, left),
    }


def _saved(path: Path, arrays: dict[str, np.ndarray]) -> str:
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, path)
    return str(path)


@pytest.mark.parametrize("tokens", ["all", "response"])
def test_left_and_right_padding_mean_the_same(tmp_path: Path, tokens: str) -> None:
    left = read_pretokenised(_saved(tmp_path / "l.safetensors", _arrays(left=True)), tokens=tokens)
    right = read_pretokenised(_saved(tmp_path / "r.safetensors", _arrays()), tokens=tokens)
    assert [row.ids.tolist() for row in left.rows] == [row.ids.tolist() for row in right.rows] == ROWS
    assert [row.counted.tolist() for row in left.rows] == [row.counted.tolist() for row in right.rows]
    assert (left.counted_tokens, left.total_tokens) == ((8, 8) if tokens == "all" else (3, 8))
    assert left.without_response == 1


def test_what_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "ids.safetensors"
    found = read_pretokenised(_saved(path, _arrays()), tokens="response")
    assert [row.counted.tolist() for row in found.rows] == [[False, True, True], [False], [False, False, False, True]]
    assert (found.template, found.template_sha256, found.tokens) == ("pretokenised", "", "response")
    assert (found.source, found.sha256) == ("ids.safetensors", hashlib.sha256(path.read_bytes()).hexdigest())
    assert [row.number for row in found.rows] == [1, 2, 3]
    with pytest.raises(
        DataError, match=r"^ids.safetensors: token id 8 in row 2 is beyond the model's vocabulary of 8;"
    ):
        check_vocabulary(found, 8)


@pytest.mark.parametrize("dtype", ["int32", "int16", "uint8"])
def test_any_integers_become_int64_and_a_mask_may_be_boolean(tmp_path: Path, dtype: str) -> None:
    arrays = {key: array.astype(dtype) for key, array in _arrays().items() if key != "labels"}
    arrays["attention_mask"] = arrays["attention_mask"].astype(bool)
    found = read_pretokenised(_saved(tmp_path / "a.safetensors", arrays))
    assert found.rows[2].ids.tolist() == ROWS[2] and found.rows[2].ids.dtype == np.int64
    assert found.without_response == 0  # without labels nothing is known of responses


def _with(**changed: np.ndarray | None) -> dict[str, np.ndarray]:
    return {key: array for key, array in {**_arrays(), **changed}.items() if array is not None}


HOLE = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 1, 1]])
EMPTY = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
BAD = [
    (_with(attention_mask=HOLE), ", row 3: `attention_mask` has a hole; pad on the left or the right only"),
    (_with(attention_mask=EMPTY), ", row 2: `attention_mask` is all 0, the row holds no token; remove it"),
    (
        _with(attention_mask=EMPTY * 2),
        ", row 1: `attention_mask` holds something other than 0 and 1; write 1 for real tokens",
    ),
    (_with(input_ids=None), ": no `input_ids`; found attention_mask, labels"),
    (_with(attention_mask=None), ": no `attention_mask`; found input_ids, labels"),
    (
        _with(labels=None),
        ": no `labels` (the response token set needs them, -100 outside the response); found attention_mask, input_ids",
    ),
    (_with(input_ids=np.zeros(4, int)), ": `input_ids` has shape [4]; rows x positions are needed, neither of them 0"),
    (
        _with(input_ids=np.zeros((0, 4), int)),
        ": `input_ids` has shape [0, 4]; rows x positions are needed, neither of them 0",
    ),
    (_with(labels=np.zeros((3, 5), int)), ": `labels` has shape [3, 5], but `input_ids` has [3, 4]; pad them alike"),
    (_with(input_ids=np.zeros((3, 4))), ": `input_ids` is F64; integers up to int64 are needed"),
    (_with(input_ids=np.zeros((3, 4), bool)), ": `input_ids` is BOOL; integers up to int64 are needed"),
    (
        _with(labels=np.full((3, 4), -100)),
        ": data with no countable token (no row has a response within the length limit); give rows that have one",
    ),
]


@pytest.mark.parametrize(("arrays", "told"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_doubtful_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], told: str) -> None:
    path = _saved(tmp_path / "bad.safetensors", arrays)
    with pytest.raises(DataError) as caught:
        read_pretokenised(path, tokens="response")
    assert str(caught.value) in (f"{path}{told}", f"bad.safetensors{told}")  # the set as a whole goes by its source


def test_what_is_not_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    for content in (b"", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"/bad.safetensors: not a readable safetensors file \("):
            read_pretokenised(str(path))
    for missing in (str(tmp_path / "none.safetensors"), "a\0b"):
        with pytest.raises(DataError, match="no such file"):
            read_pretokenised(missing)
    with pytest.raises(UsageError, match="token set 'x' is unknown"):
        read_pretokenised(str(path), tokens="x")
