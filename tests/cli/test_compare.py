"""`inspect --base` as people run it: tables, JSON, the page, and what is said about bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy
from safetensors.numpy import load_file, save_file


def test_tables_name_what_moved(place: Any) -> None:
    code, shown, said = place.run("inspect", "tuned", "--base", "aligned")
    assert (code, said) == (0, [])
    assert "14 of 20 tensors changed" in shown
    assert re.search(r"verdict: \S.* \(confidence [01]\.\d\d\)", shown)
    assert "layer  q    k    v    o    gate up   down norm" in shown
    assert len([line for line in shown.splitlines() if line.startswith("layers.")]) == 10
    _, every, _ = place.run("inspect", "tuned", "--base", "aligned", "--tensors")
    assert len([line for line in every.splitlines() if line.startswith("layers.")]) == 14


def test_json_is_the_comparison(place: Any) -> None:
    code, shown, _ = place.run("inspect", "tuned", "--base", "aligned", "--spectra", "--format", "json")
    found = json.loads(shown)
    assert (code, found["schema"], found["version"]) == (0, "weightguard-comparison", 2)
    assert len(found["spectra"]) == 14
    assert found["alignment"]["total"] is None


def test_alignment_map(place: Any) -> None:
    place.model("before", lambda tensors: tensors.update(
        {n: t + numpy.float32(0.1) * numpy.cos(numpy.arange(t.size)).reshape(t.shape).astype("f4") for n, t in tensors.items()}
    ))  # fmt: skip
    code, shown, _ = place.run("inspect", "tuned", "--base", "aligned", "--aligned", "aligned", "--unaligned", "before")
    assert code == 0
    assert [line.split()[0] for line in shown.splitlines() if re.match(r"(layer \d|all) ", line)] == [
        "layer",
        "layer",
        "all",
    ]


def test_the_page_is_one_safe_file(place: Any) -> None:
    shutil.copytree(place / "tuned", place / "<b>&tuned")
    arguments = ["inspect", "<b>&tuned", "--base", "aligned", "--spectra", "--html", "page.html"]
    assert place.run(*arguments)[0] == 0
    page = (place / "page.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;tuned" in page
    assert "<script" not in page and "http:" not in page and "https:" not in page and " style=" not in page
    assert "default-src 'none'" in page and "prefers-color-scheme:dark" in page
    drawings = [minidom.parseString(each) for each in re.findall(r"<svg.*?</svg>", page)]
    assert len(drawings) == 3
    assert (
        len(drawings[0].getElementsByTagName("rect")) == 16 + 8
    )  # two layers, seven linears and the norms; the shades
    again = place.run(*arguments)
    assert again == (4, "", ["weightguard: page.html: exists; give another name or --force"])
    assert place.run(*arguments, "--force")[0] == 0
    assert (place / "page.html").read_text() == page


def test_nothing_is_said_of_a_change_where_there_is_none(place: Any) -> None:
    code, shown, _ = place.run("inspect", "aligned", "--base", "aligned")
    assert code == 0
    assert "verdict: identical" in shown
    assert "0 of 20 tensors changed" in shown


def test_bad_input_is_one_line(place: Any) -> None:
    def same(*arguments: str) -> tuple[int, list[str]]:
        code, shown, said = place.run("inspect", "tuned", *arguments)
        assert shown == ""
        return code, said

    assert same("--base", "./gone")[0] == 3
    assert same("--spectra") == (2, ["weightguard: --base BASE is missing: the model that MODEL came from"])
    assert same("--base", "aligned", "--unaligned", "aligned")[0] == 2
    code, said = same("--base", "aligned", "--html", "tuned")
    assert (code, said) == (4, ["weightguard: tuned: exists; give another name"])


def test_a_tensor_with_nan_is_said(place: Any) -> None:
    name = place.model("broken", lambda tensors: tensors["model.norm.weight"].fill(numpy.nan))
    code, shown, _ = place.run("inspect", name, "--base", "aligned")
    assert code == 0
    assert "! tensor 'model.norm.weight' holds NaN or infinity; it was left out" in shown


def test_quantised_weights_are_named_and_the_rest_is_compared(place: Any, tmp_path: Path) -> None:
    name = place.model("packed")
    tensors = load_file(place / name / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].astype("i1")
    save_file(tensors, place / name / "model.safetensors")
    code, shown, _ = place.run("inspect", name, "--base", "aligned")
    assert code == 0
    assert "1 tensors are stored as packed or 8 bit numbers (first: model.layers.0.mlp.up_proj.weight)" in shown


def test_a_page_never_lies_in_an_input_and_no_option_is_dropped(place: Any) -> None:
    """Not even with --force, which replaces the page of an earlier run."""
    before = place.everything()
    run = ("inspect", "tuned", "--base", "aligned")
    for target in ("tuned/config.json", "aligned/model.safetensors", "tuned/page.html"):
        code, out, said = place.run(*run, "--html", target, "--force")
        assert (code, out) == (2, "") and f"--html {target}: lies in the input" in said[-1]
    code, out, said = place.run(*run, "--activations", "harmful.jsonl", "harmful.jsonl", "--html", "page.html")
    assert (code, out) == (2, "") and "--html does not go with --activations" in said[-1]
    assert place.everything() == before
