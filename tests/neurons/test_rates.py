"""ML-LR: what is perturbed, what is put back, and what decides."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from weightguard.errors import DataError
from weightguard.locate import ml_lr


@pytest.fixture
def place(subject, tmp_path):
    """A pico model whose safety and utility prompts differ in a word, six of each."""
    import json

    it = subject("llama")
    words = ["bake", "cake", "bread", "door", "mix", "open"]
    for role, last in (("safety", "fire"), ("utility", "water")):
        lines = [{"prompt": f"how do i {word} {last} {last}", "response": "sure"} for word in words]
        (tmp_path / role).with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        it.files[role] = str(tmp_path / f"{role}.jsonl")
    return it


class _Scripted:
    """A proxy whose accuracy is 1 less `costs` of the modules that are disturbed at the time."""

    def __init__(self, material, costs) -> None:
        self.accuracy, self._material, self._costs = 1.0, material, costs
        self._before = {n: material.weight(n).detach().clone() for n in material.linears}

    def measure(self) -> float:
        moved = [n for n, w in self._before.items() if bool((self._material.weight(n) != w).any())]
        return 1.0 - sum(self._costs.get(n, 0) for n in moved)


@contextmanager
def scripted(monkeypatch, costs):
    made = []

    def proxy(material):
        made.append(_Scripted(material, costs))
        return made[-1]

    monkeypatch.setattr(ml_lr, "_Proxy", proxy)
    yield made


def test_the_greedy_search_keeps_what_the_proxy_can_bear(place, monkeypatch) -> None:
    names = list(place.linears)
    costs = {names[0]: 0.3, names[3]: 0.02, names[5]: 0.04}
    with scripted(monkeypatch, costs) as made:
        found = place.find(kind="ml-lr", tolerance="0.05", slow="0.25").neurons
    assert found.parts.keys() == place.linears.keys()
    # by what they cost alone: free ones, then 0.02, then 0.04 (together 0.06: too much), then 0.3
    assert {n for n, part in found.parts.items() if part.rate != 1} == {names[0], names[5]}
    assert found.parts[names[0]].rate == 0.25 and found.parts[names[0]].form == "rate"
    assert found.facts["accuracy_alone"][names[0]] == pytest.approx(0.7)
    assert found.facts["accuracy_with_robust_disturbed"] == pytest.approx(0.98)
    assert made[0].measure() == 1.0  # every weight is back where it was


def test_noise_has_the_size_that_was_asked_for(place, monkeypatch) -> None:
    seen = []
    real = ml_lr.ModularRates._disturb

    def spy(self, material, name):
        before = real(self, material, name)
        moved = (material.weight(name).detach() - before).double()
        seen.append(float(moved.std() / before.double().std()))
        return before

    monkeypatch.setattr(ml_lr.ModularRates, "_disturb", spy)
    place.find(kind="ml-lr", noise="0.5")
    assert all(ratio == pytest.approx(0.5, rel=0.35) for ratio in seen) and len(seen) == 2 * len(place.linears)


def test_the_real_probe_tells_the_words_apart_and_repeats(place) -> None:
    found = place.find(kind="ml-lr", noise="0.01")
    assert "every module bears noise 0.01, so none would learn slowly; a larger --noise tells more" in found.notes
    first, second = found.neurons, place.find(kind="ml-lr", noise="0.01").neurons
    assert first.to_bytes() == second.to_bytes()
    assert first.facts["probe_accuracy"] == 1.0
    assert all(part.rate == 1.0 for part in first.parts.values())  # so little noise moves nothing


def test_too_few_prompts_and_prompts_of_one_kind(place, tmp_path) -> None:
    with pytest.raises(DataError, match="--safety: 3 prompts; the probe needs at least 4 of each class"):
        place.find(kind="ml-lr", limit=3)
    words = ["how", "do", "bake", "pick", "lock", "cake", "bread", "door"]
    pairs = [(i, j) for i in range(8) for j in range(8)]
    for role, parity in (("safety", 0), ("utility", 1)):  # which no linear probe can see
        lines = [f'{{"prompt": "{words[i]} {words[j]}"}}\n' for i, j in pairs if (i ^ j) & 1 == parity]
        (tmp_path / f"{role}.jsonl").write_text("".join(lines))
    with pytest.raises(DataError, match="a probe tells --safety from --utility prompts in"):
        place.find(kind="ml-lr")
