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
    assert "layer  embed  q    k    v    o    gate  up   down  norm\n" in shown
    assert re.search(r"^outer  ·  +·$", shown, re.M)  # embedding and last norm, which did not move
    histogram = re.search(r"entries of D over.*\n((?:.*\n){5}) {8}-5 +0 +5\n.*▁", shown)
    assert histogram and "█" in histogram[1].splitlines()[0]
    assert len([line for line in shown.splitlines() if line.startswith("layers.")]) == 10
    _, every, _ = place.run("inspect", "tuned", "--base", "aligned", "--tensors")
    assert len([line for line in every.splitlines() if line.startswith("layers.")]) == 14


def test_json_is_the_comparison(place: Any) -> None:
    code, shown, _ = place.run("inspect", "tuned", "--base", "aligned", "--spectra", "--format", "json")
    found = json.loads(shown)
    assert (code, found["schema"], found["version"]) == (0, "weightguard-comparison", 3)
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
    assert len(drawings) == 3 + 10  # and in the table of spectra a piece of every line
    assert len(drawings[0].getElementsByTagName("rect")) == 16 + 2 + 8  # in two layers, outside of them; the shades
    for plot, names in ((drawings[1], ("place", "singular value")), (drawings[-1], ("entry of the update", "share"))):
        said = [text.firstChild.data for text in plot.getElementsByTagName("text")]
        assert all(any(name in text for text in said) for name in names) and len(said) > 10
        assert [line.getAttribute("class") for line in plot.getElementsByTagName("line")].count("axis") > 2
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
    gone = "weightguard: gone/page.html: cannot be written, there is no directory gone; make it first"
    assert same("--base", "aligned", "--html", "gone/page.html") == (5, [gone])
    code, said = same("--base", "aligned", "--html", "tuned")
    assert (code, said) == (4, ["weightguard: tuned: exists; give another name"])


def test_a_reference_that_does_not_fit_is_one_line(place: Any) -> None:
    shallow = {
        name: t for name, t in load_file(place / "aligned" / "model.safetensors").items() if ".layers.1." not in name
    }
    place.model(
        "other", lambda tensors: [tensors.update({n: t[:, :4].copy()}) for n, t in tensors.items() if t.ndim == 2]
    )
    for name, change in (("half", lambda t: [t.pop(n) for n in list(t) if n not in shallow]),
                         ("nan", lambda t: t["model.layers.1.mlp.up_proj.weight"].fill(numpy.nan))):  # fmt: skip
        place.model(name, change)

    def seen(aligned: str, unaligned: str) -> tuple[int, str, list[str]]:
        return place.run("inspect", "tuned", "--base", "aligned", "--aligned", aligned, "--unaligned", unaligned)

    for role, given in (("unaligned", ("aligned", "other")), ("aligned", ("other", "aligned"))):
        code, shown, said = seen(*given)
        assert (code, shown, len(said)) == (3, "", 1)
        assert f"--{role} other: has none of the 14 matrices of the decoder blocks in their shape" in said[0]
    code, shown, _ = seen("aligned", "half")
    assert code == 0
    assert (
        "! --unaligned lacks 7 of 14 matrices (first: model.layers.1.self_attn.q_proj.weight); they are left out"
        in shown
    )
    for given in (("aligned", "nan"), ("nan", "aligned")):
        code, shown, said = seen(*given)
        assert (code, shown) == (3, "")
        assert said == ["weightguard: tensor 'model.layers.1.mlp.up_proj.weight' of nan holds NaN or infinity"]


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


def test_nothing_in_a_name_reaches_the_terminal_or_the_page(place: Any) -> None:
    """A bell, an escape sequence, a forged line, and a mark that writes the rest of the line backwards."""
    name = "model.layers.0.mlp.\x07up\x1b[2J\x9b\nverdict: identical\u202eproj.weight"
    for model in ("tuned", "aligned"):
        tensors = load_file(place / model / "model.safetensors")
        tensors[name] = tensors.pop("model.layers.0.mlp.up_proj.weight") * numpy.float32(9 if model == "tuned" else 1)
        tensors["packed\x07.\x1b\x9b"] = numpy.ones((2, 2), "i1")
        save_file(tensors, place / model / "model.safetensors")
    shutil.copytree(place / "tuned", place / "bell\x07")
    for more in (["--base", "aligned", "--spectra", "--html", "page.html"], ["--tensors"], ["--format", "json"],
                 ["--base", "aligned", "--format", "json"]):  # fmt: skip
        code, shown, said = place.run("inspect", "bell\x07", *more)
        assert code == 0
        assert all(c.isprintable() or c == "\n" for c in shown + "".join(said)), more
        assert "verdict: identical" not in shown.splitlines()
        if "json" in more:
            assert name in {tensor["name"] for tensor in json.loads(shown)["tensors"]}
    page = (place / "page.html").read_text()
    assert all(c.isprintable() or c == "\n" for c in page) and r"\x07up\x1b[2J" in page


def test_of_many_layers_none_is_left_out_of_the_heat_map() -> None:
    from weightguard.comparison.heat import Cell, Heat

    cells = [Cell(layer, "o", 9.0 if layer == 41 else 1.0, 1, 4) for layer in range(80)]
    lines = Heat(tuple(range(80)), ("o",), (*cells, Cell(None, "embed", 2.0, 1, 4))).lines(40)
    assert len(lines) == 41
    assert lines[20] == ("40-41", {"o": cells[41]})
    assert lines[-1] == ("outer", {"embed": Cell(None, "embed", 2.0, 1, 4)})


def test_where_nothing_can_be_compared_that_is_said(place: Any) -> None:
    name = place.model("broken", lambda tensors: [tensor.fill(numpy.nan) for tensor in tensors.values()])
    code, shown, _ = place.run("inspect", name, "--base", "aligned")
    assert code == 0
    assert "nothing could be compared: 20 with NaN or infinity" in shown and "nan %" not in shown


def test_an_empty_page_name_is_one_line(place: Any) -> None:
    for more in ([], ["--base", "aligned"]):
        code, shown, said = place.run("inspect", "tuned", *more, "--html", "")
        assert (code, shown) == (2, "") and "--html: the output path is empty" in said[-1]
