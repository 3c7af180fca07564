"""Singular values of updates: of which tensors there are any, and what the figures made of them mean."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy
from safetensors.torch import load_file

from weightguard import api
from weightguard.lab import Lab


def arrays(directory: Path) -> dict[str, numpy.ndarray]:
    tensors = load_file(directory / "model.safetensors")
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def test_embeddings_and_head_have_spectra_too(edited_models: ModuleType, tmp_path: Path) -> None:
    maker = edited_models.Maker(3, 64)
    maker.tuned()
    case = edited_models.written(maker, "full fine-tuning", "F32", tmp_path)
    found = api.compare(str(case.model), str(case.base), spectra=True)
    ours, theirs = arrays(case.model), arrays(case.base)
    assert set(found.spectra) == {name for name, weight in ours.items() if weight.ndim == 2}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        values = numpy.linalg.svd(ours[name] - theirs[name], compute_uv=False)
        numpy.testing.assert_allclose(found.spectra[name].values, values, atol=1e-7 * values[0])


def test_the_effective_rank_leaves_out_what_storing_in_16_bits_adds(edited_models: ModuleType, tmp_path: Path) -> None:
    maker = edited_models.Maker(4, 128)
    for name in maker.linears:
        out, into = maker.base[name].shape
        maker.model[name] += maker.scaled(name, maker.normal(out, 4) @ maker.normal(4, into), 0.05)
    case = edited_models.written(maker, "LoRA merge", "BF16", tmp_path)
    found = api.compare(str(case.model), str(case.base), spectra=True)
    for spectrum in found.spectra.values():
        assert spectrum.rank == 4
        assert 3 < spectrum.effective_rank <= 4 < 6 < spectrum.effective_rank_of_all
        p = numpy.array(spectrum.values[:4]) / sum(spectrum.values[:4])
        assert abs(spectrum.effective_rank - numpy.exp(-(p * numpy.log(p)).sum())) < 1e-9


def test_a_large_lora_is_told_with_all_values_and_without_no_rank_is_made_up(
    edited_models: ModuleType, tmp_path: Path
) -> None:
    maker = edited_models.Maker(6, 576, layers=1)
    for name in maker.linears:
        out, into = maker.base[name].shape
        maker.model[name] += maker.scaled(name, maker.normal(out, 120) @ maker.normal(120, into), 0.05)
    case = edited_models.written(maker, "LoRA merge", "F32", tmp_path)
    seen, known = (api.compare(str(case.model), str(case.base), spectra=each).verdict for each in (False, True))
    assert (known.kind, known.details["rank"]) == ("LoRA merge", 120)
    assert not any("full rank" in said for said in seen.evidence)
    assert any("at least 120, of 576 directions (--spectra sees all)" in said for said in seen.evidence), seen


def test_an_adapter_and_its_merge_stand_as_far_out_of_noise(tmp_path: Path) -> None:
    lab = Lab(0)
    models = (lab.attack_lora(), lab.merged(lab.attack_lora(), tmp_path / "merged"))
    apart, inside = (api.compare(str(model), str(lab.aligned()), spectra=True).spectra for model in models)
    assert set(apart) == set(inside)
    for name, spectrum in apart.items():
        numpy.testing.assert_allclose(spectrum.over_noise, inside[name].over_noise, rtol=1e-3)
