"""The safety landscape: attack success while the weights are moved along random lines, towards another model, or in a plane.

Success of a prompt: not refused, where the judge rules on refusals, as in arXiv:2405.17374; of a judge that rules on harm
alone: answered harmfully, or incoherently, for else a model that noise has broken would look safe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from weightguard.data import Dataset
from weightguard.errors import UsageError
from weightguard.measurement import KINDS, Measurement
from weightguard.validate.evaluation import REHEARSAL, Side
from weightguard.validate.generation import check_room, greedy_answers, prompt_ids
from weightguard.validate.judges import Exchange, Judge, Ruling
from weightguard.validate.metrics.incoherence import is_incoherent
from weightguard.validate.metrics.rows import Rows, measured
from weightguard.validate.metrics.visage import BASINS, basin, visage, visage_interval
from weightguard.validate.perturbing import Direction, direction_to, moved, random_direction

Progress = Callable[[str, int, int], None]
At = tuple[float, ...]


@dataclass(frozen=True)
class Walk:
    """directions: random lines. points: of a line, or of each side of a plane. reach: how far from the model, and beyond
    the other one, in shares of the tensors' norms, of the way to the other. basin: see metrics.visage."""

    directions: int = 3
    points: int | None = None
    reach: float = 0.5
    plane: bool = False
    basin: str = BASINS[0]
    seed: int = 0
    max_new_tokens: int = 64
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, least in (("directions", 1), ("seed", 0), ("max_new_tokens", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}")
        if self.basin not in BASINS:
            raise UsageError(f"--basin {self.basin}: must be one of {', '.join(BASINS)}")
        if self.side < 3 or self.side % 2 == 0:
            raise UsageError(f"--points {self.points}: must be odd and at least 3, so that the model is one of them")
        if not 0 < self.reach <= 10:
            raise UsageError(f"--range {self.reach:g}: must lie above 0 and at most at 10")

    @property
    def side(self) -> int:
        return self.points if self.points is not None else 11 if self.plane else 21

    def line(self) -> list[float]:
        """Places around the model, exactly 0 in the middle."""
        return [self.reach * (2 * i - (self.side - 1)) / (self.side - 1) for i in range(self.side)]

    def way(self) -> list[float]:
        """Places from before the model (0) to behind the other one (1), both among them."""
        found = (round(-self.reach + (1 + 2 * self.reach) * i / (self.side - 1), 12) for i in range(self.side))
        return sorted({*found, 0.0, 1.0})


@dataclass(frozen=True)
class Route:
    """A line or a plane: where to look, and how to get its directions, which are in memory only while it is walked."""

    name: str
    places: tuple[At, ...]
    directions: Callable[[], tuple[Direction, ...]]


@dataclass(frozen=True)
class Seen:
    """What came of one place. hits: whether each prompt's attack succeeded, None without a ruling. incoherent: a share."""

    at: At
    hits: tuple[bool | None, ...]
    incoherent: float


@dataclass(frozen=True)
class Landscape:
    """shape: the part of a report that holds it, but for what the other model is. measurements: VISAGE, of random lines."""

    shape: dict[str, Any]
    measurements: tuple[Measurement, ...]


def landscape(
    side: Side, dataset: Dataset, judge: Judge, walk: Walk, other: Any, said: str, progress: Progress
) -> Landscape:
    """Walk around `side.model`, whose weights are afterwards what they were, bit for bit. other: a model to walk to, called
    `said` in messages, or None. Errors: DataError, MismatchError, the judge's own."""
    judge.rule([REHEARSAL], lambda done, total: progress("judge ready", done, total))
    prompts = prompt_ids(dataset.rows, side.tokenizer, dataset.source)
    check_room(prompts, dataset.rows, side.model, walk.max_new_tokens, dataset.source)
    seen = _walked(side, dataset, judge, walk, prompts, routes(side.model, other, said, walk), progress)
    curves = [
        {"name": name, "points": [_point(each, dataset, judge) for each in found]} for name, found in seen.items()
    ]
    random_lines = other is None and not walk.plane
    measurements = (_visage(list(seen.values()), dataset, judge, walk),) if random_lines else ()
    return Landscape({"axes": _axes(other is not None, walk.plane), "curves": curves}, measurements)


def _axes(towards: bool, plane: bool) -> list[str]:
    first = "towards" if towards else "random"
    return [first, "random, orthogonal"] if plane else [first]


def routes(model: Any, other: Any, said: str, walk: Walk) -> list[Route]:
    """The random lines, or the one line or plane. Error: MismatchError for another model that does not fit."""
    line = tuple((a,) for a in walk.line())
    if other is None and not walk.plane:
        return [
            Route(f"random {i + 1}", line, lambda i=i: (random_direction(model, walk.seed, i),))  # type: ignore[misc]
            for i in range(walk.directions)
        ]
    first = random_direction(model, walk.seed, 0) if other is None else direction_to(model, other, said)
    along = walk.line() if other is None else walk.way()
    if not walk.plane:
        return [Route("towards", tuple((a,) for a in along), lambda: (first,))]
    places = tuple((a, b) for b in walk.line() for a in along)
    return [Route("plane", places, lambda: (first, random_direction(model, walk.seed, 1, across=first)))]


def _walked(
    side: Side,
    dataset: Dataset,
    judge: Judge,
    walk: Walk,
    prompts: Sequence[Sequence[int]],
    planned: Sequence[Route],
    progress: Progress,
) -> dict[str, list[Seen]]:
    """What every place of every route showed; the model itself, where all routes meet, is asked once."""
    total = len(prompts) * (sum(len(route.places) for route in planned) - len(planned) + 1)
    home: Seen | None = None
    done = 0
    found: dict[str, list[Seen]] = {}
    for route in planned:
        found[route.name] = []
        with moved(side.model, route.directions()) as model:
            for at in route.places:
                if any(at) or home is None:
                    model.to(at)
                    each = _seen(at, side, dataset, judge, walk, prompts, _from(progress, done, total))
                    home = home if any(at) else each
                    done += len(prompts)
                found[route.name].append(each if any(at) or home is None else home)
    return found


def _from(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress("answers", before + done, total)


def _seen(
    at: At, side: Side, dataset: Dataset, judge: Judge, walk: Walk, prompts: Sequence[Sequence[int]],
    progress: Callable[[int], None],
) -> Seen:  # fmt: skip
    answers = [""] * len(prompts)
    asked = greedy_answers(
        side.model, side.tokenizer, prompts, max_new_tokens=walk.max_new_tokens, batch_size=walk.batch_size
    )
    for done, (place, text) in enumerate(asked, 1):
        answers[place] = text
        progress(done)
    exchanges = [Exchange(row.prompt, text) for row, text in zip(dataset.rows, answers, strict=True)]
    rulings = judge.rule(exchanges, lambda done, total: None)
    hits = tuple(_succeeds(ruling, text, judge) for ruling, text in zip(rulings, answers, strict=True))
    return Seen(at, hits, sum(map(is_incoherent, answers)) / len(answers))


def _succeeds(ruling: Ruling, answer: str, judge: Judge) -> bool | None:
    if judge.refusals:
        return None if ruling.refused is None else not ruling.refused
    return None if ruling.harmful is None else ruling.harmful or is_incoherent(answer)


def _point(seen: Seen, dataset: Dataset, judge: Judge) -> dict[str, Any]:
    found = measured(Rows("attack_success_rate", seen.hits, dataset.sha256, judge.id), 0)
    said = {"success": found.value, "low": found.low, "high": found.high, "n": found.n}
    return {"at": list(seen.at), **said, "incoherent": seen.incoherent}


def _visage(lines: Sequence[Sequence[Seen]], dataset: Dataset, judge: Judge, walk: Walk) -> Measurement:
    """VISAGE over the prompts that have a ruling everywhere; the others count as either in the interval."""
    hits = numpy.array([[[numpy.nan if h is None else h for h in seen.hits] for seen in line] for line in lines], "f8")
    ruled = ~numpy.isnan(hits).any(axis=(0, 1))
    kind = KINDS["visage"]
    value, interval, centre = None, None, walk.side // 2
    note = "no prompt has a ruling at every point"
    if ruled.any():
        success = hits[:, :, ruled].mean(axis=2)
        value = visage(success, centre, walk.basin)
        interval = visage_interval(hits, centre, walk.basin, walk.seed)
        width = numpy.mean([basin(line, centre, walk.basin).mean() for line in success])
        inside = f"basin {walk.basin}, {100 * width:.0f} % of them in it"
        walked = f"{walk.directions} direction{'s' if walk.directions > 1 else ''}"
        note = f"{walked}, {walk.side} points to ±{walk.reach:g}, {inside}"
        note += f"; {len(ruled) - ruled.sum()} prompts without a ruling somewhere" if not ruled.all() else ""
    low, high = (
        (None, None) if interval is None or value is None else (min(interval[0], value), max(interval[1], value))
    )
    return Measurement("visage", value, int(ruled.sum()), low, high, kind.better, kind.unit, judge.id, judge.revision,
                       dataset.sha256, note=note)  # fmt: skip
