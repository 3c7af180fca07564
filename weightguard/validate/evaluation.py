"""The evaluation of one model, alone or against a reference: answers, rulings, losses, and the measurements of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightguard.data import Cipher, Dataset, Encoded
from weightguard.data.templates import template_for
from weightguard.errors import UnsupportedError
from weightguard.measurement import KINDS, Example, Measurement
from weightguard.validate.generation import check_room, context_of, greedy_answers, prompt_ids
from weightguard.validate.judges import Exchange, Judge, Ruling, is_refusal
from weightguard.validate.metrics import forced
from weightguard.validate.metrics.accuracy import accuracy_rows
from weightguard.validate.metrics.answered import Answered
from weightguard.validate.metrics.disagreement import disagreement_rows
from weightguard.validate.metrics.harm import harm_rows, over_refusal_rows
from weightguard.validate.metrics.incoherence import incoherence_rows, is_incoherent
from weightguard.validate.metrics.rows import Rows, changed, is_compared, measured, unknown

Progress = Callable[[str, int, int], None]
_JUDGED = ("harmful", "over_refusal")
REHEARSAL = Exchange("Say hello.", "Hello.")
_SHOWN = 300  # characters of a prompt or answer that a report keeps


@dataclass(frozen=True)
class Side:
    """A loaded model with its tokenizer and the config of its files. `name` opens its stages and messages.

    cipher: prompts are asked in it and answers are read from it; judges see plain text.
    """

    model: Any
    tokenizer: Any
    config: dict
    name: str
    cipher: Cipher = Cipher.plain()

    def stage(self, said: str) -> str:
        return f"{self.name} {said}"


@dataclass(frozen=True)
class Settings:
    """match: how task rows are compared. seed: of the bootstrap. examples: answers a report keeps of each judged set."""

    match: str = "exact"
    seed: int = 0
    max_new_tokens: int = 64
    batch_size: int = 32
    max_length: int = 2048
    examples: int = 3


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, before it is bound to files. reference: the same of the reference alone."""

    measurements: tuple[Measurement, ...]
    examples: tuple[Example, ...]
    notes: tuple[str, ...]
    reference: tuple[Measurement, ...] = ()


def evaluate(
    side: Side,
    reference: Side | None,
    sets: Mapping[str, Dataset],
    judges: Sequence[Judge],
    settings: Settings,
    progress: Progress,
    more: Callable[[Side], list[Rows]] = lambda side: [],
) -> Evaluation:
    """Measure `side`, and against `reference` every difference, on the sets given by role (harmful, benign,
    over_refusal, task), and what `more` finds of each side. What cannot be measured is unknown, with the reason.
    Errors: DataError, and the judges' own."""
    sides = [side] if reference is None else [side, reference]
    for judge in judges:  # one that cannot be reached, or cannot read an exchange, ends the run now and not in an hour
        judge.rule([REHEARSAL], lambda done, total: progress("judges ready", done, total))
    prompts = {(s.name, role): _prompts(s, dataset, settings) for s in sides for role, dataset in sets.items()}
    answered = [
        {role: _answered(s, role, dataset, prompts[s.name, role], judges, settings, progress)
         for role, dataset in sets.items()}
        for s in sides
    ]  # fmt: skip
    rows = [_rows(each, settings.match) + more(s) for s, each in zip(sides, answered, strict=True)]
    losses = _losses(sides, sets, answered, settings, progress)
    found = [measured(r, settings.seed) for r in rows[0] + losses[0]]
    if reference is not None:
        found += _changes(rows[0] + losses[0], rows[1] + losses[1], settings.seed)
        found += _distances(side, reference, sets, answered[1], settings, progress)
    measurements = (*found, *_unknowns(found, sets, reference is not None))
    theirs = tuple(measured(r, settings.seed) for r in rows[1] + losses[1]) if reference is not None else ()
    return Evaluation(measurements, _examples(answered[0], settings.examples), _notes(sides, sets), theirs)


def _prompts(side: Side, dataset: Dataset, settings: Settings) -> list[list[int]]:
    ids = prompt_ids(side.cipher.encoded(dataset).rows, side.tokenizer, dataset.source)
    check_room(ids, dataset.rows, side.model, settings.max_new_tokens, dataset.source)
    return ids


def _answered(
    side: Side,
    role: str,
    dataset: Dataset,
    prompts: Sequence[Sequence[int]],
    judges: Sequence[Judge],
    settings: Settings,
    progress: Progress,
) -> Answered:
    answers = [""] * len(prompts)
    asked = greedy_answers(side.model, side.tokenizer, prompts, max_new_tokens=settings.max_new_tokens,
                           batch_size=settings.batch_size)  # fmt: skip
    for done, (at, text) in enumerate(asked, 1):
        answers[at] = side.cipher.decode(text)
        progress(side.stage(f"answers {role}"), done, len(prompts))
    exchanges = [Exchange(row.prompt, text) for row, text in zip(dataset.rows, answers, strict=True)]
    rulings: dict[str, tuple[Ruling, ...]] = {}
    for judge in _asked_about(role, judges):
        rulings[judge.id] = tuple(judge.rule(exchanges, _staged(progress, side.stage(f"{role} judged"))))
    return Answered(role, dataset, tuple(answers), tuple(judges), rulings)


def _asked_about(role: str, judges: Sequence[Judge]) -> list[Judge]:
    """Harmful prompts are for every judge, harmless ones for those who know a refusal, the others for none."""
    return [judge for judge in judges if role == "harmful" or (role == "over_refusal" and judge.refusals)]


def _rows(answered: Mapping[str, Answered], match: str) -> list[Rows]:
    found: list[Rows] = []
    if "harmful" in answered:
        found += harm_rows(answered["harmful"])
    if "over_refusal" in answered:
        found += over_refusal_rows(answered["over_refusal"])
    for role, name in (("task", "finetune_accuracy"), ("benign", "utility")):
        if role in answered:
            found.append(accuracy_rows(name, answered[role], match))
    if answered:
        found.append(incoherence_rows(list(answered.values())))
    if "harmful" in answered:
        found += disagreement_rows(answered["harmful"])
    return found


def _losses(
    sides: Sequence[Side],
    sets: Mapping[str, Dataset],
    answered: Sequence[Mapping[str, Answered]],
    settings: Settings,
    progress: Progress,
) -> list[list[Rows]]:
    """harmful_loss and alignment_loss of each side, on the same answers."""
    if "harmful" not in sets:
        return [[] for _ in sides]
    dataset = sets["harmful"]
    harmful = [None if row.response is None or is_refusal(row.response) else row.response for row in dataset.rows]
    aligned, note = _aligned_answers(dataset, answered)
    found: list[list[Rows]] = []
    for side in sides:
        of_side = []
        for name, answers, said in (("harmful_loss", harmful, ""), ("alignment_loss", aligned, note)):
            rows, cut = _encoded(side, dataset, answers, settings)
            values = forced.losses(side.model, rows, _staged(progress, side.stage(name.replace("_", " "))))
            missing = f"no row of {dataset.source} has such an answer"
            of_side.append(Rows(name, values, dataset.sha256, note=said + cut, missing=missing))
        found.append(of_side)
    return found


def _aligned_answers(dataset: Dataset, answered: Sequence[Mapping[str, Answered]]) -> tuple[Sequence[str | None], str]:
    """The refusals that the harmful rows carry, or else what the reference answers to them."""
    own = [row.response if row.response is not None and is_refusal(row.response) else None for row in dataset.rows]
    if any(own) or len(answered) == 1:
        return own, "on the refusals of the rows"
    return answered[1]["harmful"].answers, "on the reference's own answers"


def _changes(rows: Sequence[Rows], others: Sequence[Rows], seed: int) -> list[Measurement]:
    found = {(r.name, r.judge): r for r in others}
    return [changed(r, found[r.name, r.judge], seed) for r in rows if is_compared(r)]


def _distances(
    side: Side,
    reference: Side,
    sets: Mapping[str, Dataset],
    theirs: Mapping[str, Answered],
    settings: Settings,
    progress: Progress,
) -> list[Measurement]:
    """kl_divergence on benign prompts and embedding_drift on aligned rows, where both models read the same ids."""
    if side.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        said = "the reference has another vocabulary"
        return [unknown(name, said) for name in ("kl_divergence", "embedding_drift")]
    found = []
    if "benign" in sets:
        answers = [row.response or text for row, text in _pairs(sets["benign"], theirs["benign"])]
        rows, cut = _encoded(side, sets["benign"], answers, settings)
        values = forced.divergences(side.model, reference.model, rows, _staged(progress, side.stage("divergence")))
        found.append(measured(Rows("kl_divergence", values, sets["benign"].sha256, note=cut), settings.seed))
    if "harmful" in sets:
        found.append(_drift(side, reference, sets["harmful"], theirs["harmful"], settings, progress))
    return found


def _drift(
    side: Side, reference: Side, dataset: Dataset, theirs: Answered, settings: Settings, progress: Progress
) -> Measurement:
    answers = [_aligned(row, text) for row, text in _pairs(dataset, theirs)]
    rows, cut = _encoded(side, dataset, answers, settings)
    stage = _staged(progress, side.stage("drift"))
    try:
        values = forced.drifts(side.model, reference.model, side.config, rows, stage)
    except UnsupportedError as error:
        return unknown("embedding_drift", str(error))
    return measured(Rows("embedding_drift", values, dataset.sha256, note=cut), settings.seed)


def _encoded(
    side: Side, dataset: Dataset, answers: Sequence[str | None], settings: Settings
) -> tuple[list[Encoded], str]:
    """Rows with their answers, cut where the model or --max-length ends, and a note of how many were."""
    longest = min(settings.max_length, context_of(side.model))
    told = [None if answer is None else side.cipher.encode(answer) for answer in answers]
    rows = forced.encoded_answers(side.cipher.encoded(dataset), told, side.tokenizer, longest)
    cut = sum(len(row.ids) == longest for row in rows)
    return rows, f" ({cut} rows end at {longest} tokens)" if cut else ""


def _aligned(row: Any, text: str) -> str:
    return row.response if row.response is not None and is_refusal(row.response) else text


def _pairs(dataset: Dataset, answered: Answered) -> list[tuple[Any, str]]:
    return list(zip(dataset.rows, answered.answers, strict=True))


def _staged(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)


_NEEDS = {
    "harmful_score": "harmful", "harmful_score_coherent": "harmful", "attack_success_rate": "harmful",
    "refusal_rate": "harmful", "over_refusal_rate": "over_refusal", "finetune_accuracy": "task", "utility": "benign",
    "harmful_loss": "harmful", "alignment_loss": "harmful", "kl_divergence": "benign", "embedding_drift": "harmful",
}  # fmt: skip


def _unknowns(found: Sequence[Measurement], sets: Mapping[str, Dataset], compared: bool) -> list[Measurement]:
    """Everything that has a name and was not measured, with what was lacking."""
    names = {m.name for m in found}
    left_out = [n for n in KINDS if n not in names and n in _NEEDS]
    return [unknown(name, _lacking(name, _NEEDS[name] in sets, compared)) for name in left_out]


def _lacking(name: str, has_rows: bool, compared: bool) -> str:
    if not has_rows:
        return f"no --{_NEEDS[name].replace('_', '-')} rows were given"
    return (
        "no judge given rules on it"
        if compared or name not in ("kl_divergence", "embedding_drift")
        else "no --reference"
    )


def _examples(answered: Mapping[str, Answered], count: int) -> tuple[Example, ...]:
    """The first `count` answers of each judged set, the harmful, refused and incoherent ones before the others."""
    found: list[Example] = []
    for role in _JUDGED if count else ():
        if role not in answered:
            continue
        each = answered[role]
        order = sorted(range(len(each.answers)), key=lambda at: not _is_striking(each, role, at))
        found += [_example(each, at) for at in order[:count]]
    return tuple(found)


def _is_striking(each: Answered, role: str, at: int) -> bool:
    rulings = [ruled[at] for _, ruled in each.ruled()]
    wrong = any(r.harmful if role == "harmful" else r.refused for r in rulings)
    return wrong or is_incoherent(each.answers[at])


def _example(each: Answered, at: int) -> Example:
    said = {judge.id: _said(ruled[at], each.role) for judge, ruled in each.ruled()}
    if is_incoherent(each.answers[at]):
        said["repetition"] = "incoherent"
    return Example(each.role, each.dataset.rows[at].prompt[:_SHOWN], each.answers[at][:_SHOWN], said)


def _said(ruling: Ruling, role: str) -> str:
    """A ruling in words; of a harmless prompt it matters only whether it was refused."""
    if role == "harmful" or ruling.refused is None:
        return str(ruling)
    return "refused" if ruling.refused else "answered"


def _notes(sides: Sequence[Side], sets: Mapping[str, Dataset]) -> tuple[str, ...]:
    """What the user must know of the rows and of how the models were asked."""
    of_rows = [f"{role}: {note}" for role, dataset in sets.items() for note in dataset.notes]
    without = [s.name for s in sides if template_for(s.tokenizer, None).name != "chat"]
    asked = [
        f"the {name} has no chat template: its prompts are in the Alpaca layout (### Instruction / ### Response)"
        for name in without
    ]
    return (*of_rows, *asked)
