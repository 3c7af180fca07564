"""The commands that attack a model and that put a repair to the test."""

from __future__ import annotations

from typing import Any

import click

from weightguard import api
from weightguard.cli import options, screen, screen_attack
from weightguard.cli.commands import cli


@cli.command()
@click.argument("model")
@click.option(
    "--attack", required=True, help=f"One of {', '.join(api.attacks())}; or your own, as package.module:Class."
)
@click.option("--harmful", help="Rows with the answers to be learnt [default: shipped prompts with an opening].")
@click.option("--benign", help="Harmless rows, as a user trains on them.")
@click.option("-o", "--out", callback=options.named, required=True, help="The directory to write.")
@click.option("--limit", type=int, help="Take the first rows of each data set only.")
@click.option("--save-every", type=int, help="Steps between two saved states [default: a tenth of the run].")
@click.option("--resume", is_flag=True, help="Go on with a run that was killed.")
@options.of_attacks
@options.writing
@options.running
@options.common
def attack(form: str, **values: Any) -> None:
    """Attack the safeguards of MODEL and write the result to OUT: a test for repairs, guards and releases."""
    chosen = options.given(values, api.attack_options())
    with screen.progress() as progress:
        result = api.attack(**values, **chosen, progress=progress)
    screen_attack.show_attack(result, form)


@cli.command()
@click.argument("before")
@click.argument("after")
@click.option("--reference", required=True, help="The aligned model.")
@options.sets
@click.option("--attacks", help="Re-attack with every cell of this grid, a TOML file.")
@click.option("--attack-harmful", help="Rows that attacks train on [default: a part of --harmful, which is split].")
@click.option("--attack-benign", help="Harmless rows that attacks train on [default: a part of --benign and --task].")
@click.option(
    "--controls", is_flag=True, help="Also repair BEFORE by scaling, by magnitude and at random, as much as AFTER was."
)
@click.option("--safety", help="Prompts on which the controls find their strength, instead of the size of the repair.")
@click.option("--harm-limit", type=float, default=0.10, show_default=True, help="The most that harmful_score may be.")
@click.option(
    "--loss-limit", type=float, default=0.05, show_default=True, help="The most that utility or task may fall."
)
@click.option(
    "--cell",
    help="Run this cell only: model, before, control:scale ..., or the whole id of an attack; a wrong id lists some.",
)
@click.option("--work", help="Where finished cells are kept [default: REPORT.cells].")
@options.judging
@click.option("-o", "--out", callback=options.named, required=True, help="The report to write.")
@click.option("--force", is_flag=True, help="Replace the report; finished cells are kept.")
@options.running
@options.common
def validate(form: str, **values: Any) -> None:
    """Prove or refute a repair: BEFORE, AFTER, controls and re-attacks in one table, and four conditions."""
    with screen.progress() as progress:
        found = api.validate(**values, progress=progress)
    if found.report is None:
        screen_attack.show_unfinished(found, form)
        return
    screen.show_report(api.render(found.report, form), values["out"], form)
