"""Which directory a reference means, and which files of it may be opened. Nothing here touches a network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weightguard.checkpoint import download, hub
from weightguard.checkpoint.hub import Resolved, allowed_target, resolve
from weightguard.errors import CheckpointError, SystemFailure

COMMIT = "0123456789abcdef0123456789abcdef01234567"
XET = "ab" + "0" * 62

LIKE_PATHS = [
    "./m",
    "../m",
    "/m/n",
    "~/m",
    "a/b/c",
    "m/",
    "m.safetensors",
    "org/name.gguf",
    "https://huggingface.co/o/n",
]
NO_NAMES = ["", " ", "a\nb", "a\0b", "org/na me", "org/name@", "@v1", "org/name@-v", "org/name@a..b", "a..b", "a--b"]
NO_NAMES += ["name.git", "-a", "ü", "x" * 97, "x" * 5000]
NO_PAIRS = ["a+", "+a", "+", "./a+org/name", "org/name+./b"]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple]:
    """Stands in for the network: every hub id leads to a directory with a model and an adapter; says what was asked."""
    calls: list[tuple] = []

    def snapshot(repo: str, revision: str | None, *, offline: bool) -> Path:
        calls.append((repo, revision, offline))
        return directory(tmp_path / "cache" / "snapshots" / COMMIT, "config.json", "adapter_config.json")

    monkeypatch.setattr(download, "snapshot", snapshot)
    monkeypatch.chdir(tmp_path)
    return calls


def directory(path: Path, *names: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).write_bytes(b"{}")
    return path


def refusal(ref: str, **options) -> str:
    with pytest.raises(CheckpointError) as error:
        resolve(ref, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["m", "org/name", "a+b", "name@rev", "ü m", "m.safetensors"])
@pytest.mark.parametrize("content", ["config.json", "adapter_config.json", "model-00001-of-00002.safetensors"])
def test_local_directory_wins(asked: list, tmp_path: Path, name: str, content: str) -> None:
    directory(tmp_path / name, content)
    for ref in (name, f"./{name}", str(tmp_path / name)):
        assert resolve(ref) == Resolved(Path(ref), None, None, ref)
    assert not asked


def test_home(asked: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    directory(tmp_path / "m", "config.json")
    assert resolve("~/m") == Resolved(tmp_path / "m", None, None, "~/m")
    assert "neither a directory" in refusal("~/none") and not asked


@pytest.mark.parametrize(
    ("ref", "question"),
    [
        ("gpt2", ("gpt2", None)),
        ("org/name", ("org/name", None)),
        ("Qwen/Qwen2.5-0.5B", ("Qwen/Qwen2.5-0.5B", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1")),
        (f"gpt2@{COMMIT}", ("gpt2", COMMIT)),
    ],
)
@pytest.mark.parametrize("offline", [False, True])
def test_hub_id(asked: list, ref: str, question: tuple, offline: bool) -> None:
    found = resolve(ref, offline=offline)
    assert asked == [(*question, offline)]
    assert (found.repo, found.revision) == (question[0], COMMIT)
    assert found.label == str(found) == f"{question[0]}@0123456789ab" and found.directory.name == COMMIT


def test_a_mistyped_directory_is_missing_input_where_no_hub_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Path:
        raise SystemFailure("models/tunde: no such directory, and the connection failed")

    monkeypatch.setattr(download, "snapshot", fails)
    with pytest.raises(SystemFailure):
        resolve("models/tunde")
    directory(tmp_path / "models" / "tuned", "config.json")
    assert refusal("models/tunde") == "models/tunde: no such directory, and the connection failed"


@pytest.mark.parametrize("ref", [*LIKE_PATHS, *NO_NAMES, *NO_PAIRS])
def test_not_there(asked: list, ref: str) -> None:
    said = refusal(ref)
    assert said.startswith("no such model: ") and "is neither a directory nor a hub id (org/name[@revision])" in said
    assert said.endswith(", and no + in it has one on each side") == ("+" in ref)
    assert not asked


def test_not_a_checkpoint(asked: list, tmp_path: Path) -> None:
    directory(tmp_path / "m", "pytorch_model.bin")
    (tmp_path / "m" / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    assert refusal("m").startswith("m: not a checkpoint, there is no config.json, adapter_config.json or .safetensors")
    assert refusal("m/pytorch_model.bin") == "m/pytorch_model.bin: a file; give the directory it lies in"
    assert refusal("m/dangling") == "m/dangling: a link to nothing"
    assert refusal("fifo") == "fifo: not a directory"
    directory(tmp_path / "model", "config.json")
    assert refusal("model", kind="adapter") == "model: not an adapter, there is no adapter_config.json in it"
    assert not asked


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_directory(tmp_path: Path) -> None:
    directory(tmp_path / "m").chmod(0)
    with pytest.raises(SystemFailure, match=r"^m: cannot be read: Permission denied$"):
        resolve("m")


@pytest.mark.parametrize(
    ("model", "adapter"),
    [("m", "a"), ("dir/m+x", "dir/a"), ("m", "a+x"), ("m+x", "a+y"), ("m", "org/name@v1"), ("org/name", "gpt2")],
)
def test_model_and_adapter(tmp_path: Path, model: str, adapter: str) -> None:
    for side, name in ((model, "config.json"), (adapter, "adapter_config.json")):
        if "org" not in side and side != "gpt2":
            directory(tmp_path / side, name)
    found = resolve(f"{model}+{adapter}")
    assert found.adapter is not None and found.adapter.adapter is None
    for side, part in ((model, found), (adapter, found.adapter)):
        local = "org" not in side and side != "gpt2"
        assert part.label == side if local else part.repo == side.partition("@")[0] and part.revision == COMMIT
    assert str(found) == f"{found.label}+{found.adapter.label}"


def test_model_and_adapter_refused(tmp_path: Path) -> None:
    for name in ("m", "m+b", "b+a", "a"):
        directory(tmp_path / name, "config.json", "adapter_config.json")
    assert refusal("m+b+a") == "m+b+a: more than one + could part MODEL from ADAPTER; rename a directory"
    assert resolve("m+b") == Resolved(Path("m+b"), None, None, "m+b")
    for name in ("m+c", "c+x"):
        directory(tmp_path / name, "config.json", "adapter_config.json")
    assert str(resolve("m+c+x")) == "m+c+x" and resolve("m+c+x").directory == Path("m")  # not m+c and the hub id x
    directory(tmp_path / "plain", "config.json")
    assert refusal("m+plain") == "plain: not an adapter, there is no adapter_config.json in it"


def test_snapshot_without_a_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "snapshot", lambda *_, **__: directory(tmp_path / "main", "config.json"))
    with pytest.raises(SystemFailure, match="names no commit"):
        resolve("org/name")


def hub_cache(root: Path) -> Path:
    """A cache as huggingface_hub 2 leaves it: one plain blob, one in the store that all repositories share."""
    repository = root / "models--org--name"
    directory(repository / "blobs", "plain")
    directory(root / "blobs" / "ab", XET)
    (repository / "blobs" / "etag").symlink_to(f"../../blobs/ab/{XET}")
    snapshot = directory(repository / "snapshots" / COMMIT, "copied")
    (snapshot / "config.json").symlink_to("../../blobs/plain")
    (snapshot / "model.safetensors").symlink_to("../../blobs/etag")
    return snapshot


def test_files_of_a_hub_cache(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path / "real")
    (tmp_path / "linked").symlink_to("real")
    for root in (snapshot, tmp_path / "linked" / snapshot.relative_to(tmp_path / "real")):
        assert allowed_target(root / "copied", root) == snapshot / "copied"
        assert allowed_target(root / "config.json", root) == tmp_path / "real/models--org--name/blobs/plain"
        assert allowed_target(root / "model.safetensors", root) == tmp_path / "real/blobs/ab" / XET


def test_files_of_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = directory(tmp_path / "m", "config.json")
    directory(root / "sub", "ü x.json")
    (root / "link").symlink_to("sub/ü x.json")
    os.link(root / "config.json", root / "hard")
    for name, target in {
        "config.json": "config.json",
        "link": "sub/ü x.json",
        "hard": "hard",
        "sub/ü x.json": "sub/ü x.json",
    }.items():
        assert allowed_target(root / name, root) == root / target
    monkeypatch.chdir(root)
    assert allowed_target(Path("config.json"), Path(".")) == root / "config.json"


def test_files_that_lead_elsewhere(tmp_path: Path) -> None:
    root = directory(tmp_path / "m", "config.json")
    directory(tmp_path / "m2", "secret")
    os.mkfifo(root / "fifo")
    (root / "dir").mkdir()
    for name, target in {
        "out": "../m2/secret",
        "abs": "/etc/passwd",
        "none": "nowhere",
        "loop": "loop",
        "up": "..",
    }.items():
        (root / name).symlink_to(target)
    for name, words in {
        "out": "out: a link out of the checkpoint, to ",
        "abs": "abs: a link out of the checkpoint, to /etc/passwd; copy the file itself",
        "none": "none: a link to nothing",
        "loop": "loop: leads nowhere (Too many levels of symbolic links)",
        "up/m2/secret": "up/m2/secret: a link out of the checkpoint, to ",
        "dir": "dir: not a regular file (d",
        "fifo": "fifo: not a regular file (p",
        "missing": "missing: missing",
        "config.json/x": "config.json/x: leads nowhere (Not a directory)",
        "x" * 300: "x" * 300 + ": leads nowhere (File name too long)",
        "a\0b": "'a\\x00b': leads nowhere (",
        "../m2/secret": f"{root}/../m2/secret: outside of {root}",
        "/etc/passwd": f"/etc/passwd: outside of {root}",
        "": f"{root}: outside of {root}",
    }.items():
        with pytest.raises(CheckpointError) as error:
            allowed_target(root / name, root)
        assert str(error.value).startswith(words)


@pytest.mark.parametrize(
    "case",
    [
        "blobs of another",
        "no commit",
        "blobs is a link",
        "store is a link",
        "past blobs",
        "blob leads out",
        "no models--",
        "no snapshots",
    ],
)
def test_links_that_only_look_like_a_hub_cache(tmp_path: Path, case: str) -> None:
    snapshot = hub_cache(tmp_path / "cache")
    repository, name = snapshot.parent.parent, "model.safetensors"
    if case == "blobs of another":
        name = "config.json"
        (snapshot / name).unlink()
        directory(tmp_path / "cache/models--other/blobs", "plain")
        (snapshot / name).symlink_to("../../../models--other/blobs/plain")
    elif case == "no commit":
        snapshot = snapshot.rename(snapshot.parent / "main")
    elif case == "no snapshots":
        snapshot = snapshot.parent.rename(repository / "other") / COMMIT
    elif case == "no models--":
        snapshot = repository.rename(tmp_path / "cache" / "org--name") / "snapshots" / COMMIT
    elif case == "blob leads out":
        (repository / "blobs/etag").unlink()
        (repository / "blobs/etag").symlink_to("/etc/passwd")
    elif case == "past blobs":
        (snapshot / name).unlink()
        (snapshot / name).symlink_to(f"../../../blobs/ab/{XET}")
    else:
        moved = {"blobs is a link": repository / "blobs", "store is a link": tmp_path / "cache/blobs"}[case]
        moved.rename(tmp_path / "elsewhere")
        moved.symlink_to(tmp_path / "elsewhere")
        name = "config.json" if case == "blobs is a link" else name
    with pytest.raises(CheckpointError, match=rf"^{name}: a link out of the checkpoint, to "):
        allowed_target(snapshot / name, snapshot)


def test_shown() -> None:
    assert [hub.shown(text) for text in ("a b", "", "a\nb", "\x1b[2J", "ü")] == [
        "a b",
        "''",
        "'a\\nb'",
        "'\\x1b[2J'",
        "ü",
    ]
