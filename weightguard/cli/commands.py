"""The commands, one short function each."""

from __future__ import annotations

from typing import Any

import click

from weightguard import api
from weightguard.cli import options, screen, screen_compare


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="weightguard")
def cli() -> None:
    """Look into, repair and clear for release the weights of open language models.

    MODEL is a directory, a hub id org/name[@revision], an adapter, or MODEL+ADAPTER.
    """


@cli.command()
@click.argument("model")
@click.option(
    "--digests/--no-digests", default=True, show_default=True, help="Read every byte: sha256, NaN, zero matrices."
)
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--base", help="The model MODEL came from: show what was changed since, and what kind of change it is.")
@click.option("--aligned", help="With --unaligned: show how the change lies to what alignment did.")
@click.option("--unaligned", help="The model before its alignment.")
@click.option(
    "--spectra", is_flag=True, help="Singular values of every change, from Gram matrices; slow on large ones."
)
@click.option("--html", help="Also write the comparison to this file, as one page.")
@click.option("--force", is_flag=True, help="Replace the page.")
@options.common
def inspect(model: str, digests: bool, tensors: bool, form: str, offline: bool, **compared: Any) -> None:
    """Show what is in a checkpoint, or with --base what was done to it.

    Alone: tensors, shards, roles, dtypes, digests, problems. With --base: what moved, where, and how.
    """
    if any(compared.values()):
        with screen.progress() as progress:
            change = api.compare(model, **compared, offline=offline, progress=progress)
        screen_compare.show_comparison(change, form, tensors)
        return
    with screen.progress() as progress:
        found = api.inspect(model, offline=offline, digests=digests, progress=progress)
    screen.show_inspection(found, form, tensors)


@cli.command()
@click.argument("model")
@click.option("--data", help="Rows to run: a file or a hub data set id [default: the shipped harmful prompts].")
@click.option("--tokens", type=click.Choice(["all", "response"]), default="all", show_default=True)
@click.option("-o", "--out", required=True, help="The statistics file to write.")
@click.option("--limit", type=int, help="Take the first rows only.")
@click.option("--force", is_flag=True, help="Replace the file.")
@options.running
@options.common
def stats(form: str, **values: Any) -> None:
    """Collect the input norms of every linear on a data set, for repairs with --stats."""
    with screen.progress() as progress:
        found = api.stats(**values, progress=progress)
    screen.show_statistics(found, values["out"], form)


@cli.command()
@click.argument("model")
@click.option(
    "--method",
    default="antidote",
    show_default=True,
    help="antidote, safe-lora, undo-abliteration, or a control: random, magnitude, scale.",
)
@click.option("-o", "--out", help="The directory to write.")
@click.option(
    "--aligned",
    "--base",
    "aligned",
    help="The aligned model the update is measured from [default: found in the model card or adapter].",
)
@click.option("--unaligned", help="The model before its alignment, for methods that need the alignment direction.")
@click.option("--harmful", help="Harmful prompts with harmful or affirmative answers.")
@click.option("--utility", help="Harmless rows, with --utility-ratio.")
@click.option("--safety", help="Prompts to be refused, which --strength auto calibrates on.")
@click.option("--stats", help="Statistics from `weightguard stats` instead of --harmful.")
@click.option("--strength", help="Share of the update to remove, or auto: the weakest that restores refusals.")
@click.option("--limit", type=int, help="Take the first rows of each data set only.")
@click.option("--dry-run", is_flag=True, help="Show the plan, write nothing.")
@click.option("--save-plan", help="Also write the plan to this file, for `weightguard apply`.")
@options.of_methods
@options.writing
@options.running
@options.common
def repair(form: str, **values: Any) -> None:
    """Repair MODEL and write the result, with its manifest and card, to OUT."""
    chosen = options.given(values)
    with screen.progress() as progress:
        result = api.repair(**values, **chosen, progress=progress)
    screen.show_repair(result, form)


@cli.command()
@click.argument("plan")
@click.argument("model")
@click.option("-o", "--out", required=True, help="The directory to write.")
@click.option("--aligned", help="The aligned model, for plans that need it.")
@click.option("--unaligned", help="The model before its alignment, for plans that need it.")
@options.writing
@options.common
def apply(form: str, **values: Any) -> None:
    """Replay a saved PLAN on MODEL."""
    with screen.progress() as progress:
        result = api.apply(**values, progress=progress)
    screen.show_apply(result, form)


@cli.command()
@click.argument("output")
@click.option("--against", help="The model the output was made from.")
@options.common
def verify(output: str, against: str | None, offline: bool, form: str) -> None:
    """Check an OUTPUT against its manifest: every digest, every edit."""
    with screen.progress() as progress:
        result = api.verify(output, against=against, offline=offline, progress=progress)
    screen.show_verification(result, form)


@cli.command()
@click.option("-o", "--out", default="weightguard-demo", show_default=True, help="Where the checkpoints are left.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which lab world.")
@click.option("--force", is_flag=True, help="Replace an earlier demo.")
@click.option("--format", "form", type=click.Choice(["human", "json"]), default="human", show_default=True)
def demo(out: str, seed: int, force: bool, form: str) -> None:
    """Attack, repair and controls on a tiny model, in about a minute."""
    with screen.progress() as progress:
        result = api.demo(out, seed=seed, force=force, progress=progress)
    screen.show_demo(result, form)
