"""The commands, one short function each."""

from __future__ import annotations

import os
from typing import Any

import click
from click.core import ParameterSource

from weightguard import api
from weightguard.cli import options, screen, screen_compare, screen_landscape


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
@click.option(
    "--aligned",
    help="Another parent of a merge, and the base where --base is not given; with --unaligned: show how the change lies to what "
    "alignment did.",
)
@click.option("--unaligned", help="The model before its alignment.")
@click.option(
    "--spectra", is_flag=True, help="Singular values of every changed matrix, from Gram matrices; slow on large ones."
)
@click.option(
    "--activations",
    nargs=2,
    metavar="HARMFUL BENIGN",
    help="Run MODEL, and BASE, on two sets of prompts: where do harmful ones lie apart, and has that changed.",
)
@click.option("--html", callback=options.named, help="Also write the comparison to this file, as one page.")
@click.option("--force", is_flag=True, help="Replace the page.")
@click.option(
    "--schema",
    type=click.Choice(["comparison", "activations"]),
    is_eager=True,
    expose_value=False,
    callback=screen_compare.show_schema,
    help="Print the JSON Schema of what --base or --activations give as --format json, and nothing else.",
)
@options.common
def inspect(
    model: str,
    digests: bool,
    tensors: bool,
    activations: tuple[str, str] | None,
    form: str,
    offline: bool,
    **compared: Any,
) -> None:
    """Show what is in a checkpoint, or with --base what was done to it.

    Alone: tensors, shards, roles, dtypes, digests, problems. With --base: what moved, where, and how. With --activations:
    the refusal direction of every layer, and with --base how far it and the hidden states moved.
    """
    if activations:
        lost = next((name for name, value in compared.items() if value and name != "base"), None)
        if lost is not None:
            raise click.UsageError(f"--{lost} does not go with --activations; ask for them one after the other")
        with screen.progress() as progress:
            seen = api.activations(model, *activations, base=compared["base"], offline=offline, progress=progress)
        screen_compare.show_activations(seen, form)
        return
    if any(compared.values()) or ("+" in model and not os.path.lexists(model)):  # an adapter over its own base
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
@click.option("-o", "--out", callback=options.named, required=True, help="The statistics file to write.")
@click.option("--limit", type=int, help="Take the first rows only.")
@click.option("--force", is_flag=True, help="Replace the file.")
@options.running
@options.memory
@options.common
def stats(form: str, **values: Any) -> None:
    """Collect the input norms of every linear on a data set, for repairs with --stats."""
    with screen.progress() as progress:
        found = api.stats(**values, progress=progress)
    screen.show_statistics(found, values["out"], form)


@cli.command()
@click.argument("model")
@click.option("--kind", default="set-difference", show_default=True, help=f"One of {', '.join(api.kinds())}.")
@click.option("--rank", is_flag=True, help="The same as --kind rank: safety ranks orthogonal to utility ranks.")
@click.option("--safety", help="Prompts with the aligned behaviour [default: the shipped prompts with refusals].")
@click.option("--utility", help="Harmless rows with their answers.")
@click.option("--like", help="With --kind random: draw as many of each tensor as this NEURONS file marks.")
@click.option("-o", "--out", callback=options.named, required=True, help="The neurons file to write.")
@click.option("--limit", type=int, help="Take the first rows of each data set only.")
@click.option("--force", is_flag=True, help="Replace the file.")
@options.of_kinds
@options.running
@options.common
@click.pass_context
def neurons(context: click.Context, form: str, rank: bool, **values: Any) -> None:
    """Find where safety lies in the aligned MODEL, for repairs, guards and experiments with --neurons."""
    if rank:
        if context.get_parameter_source("kind") is not ParameterSource.DEFAULT and values["kind"] != "rank":
            raise click.UsageError(f"--rank is --kind rank; it does not go with --kind {values['kind']}")
        values["kind"] = "rank"
    chosen = options.given(values, api.kind_options())
    with screen.progress() as progress:
        found = api.neurons(**values, **chosen, progress=progress)
    screen.show_neurons(found, form)


@cli.command()
@click.argument("model")
@click.option(
    "--method",
    default="antidote",
    show_default=True,
    help="antidote; refit; gradient-reset; safe-lora; restore; undo-abliteration; a comparator: safety-vector, truncate, "
    "realign; a control: random, magnitude, scale; or an experiment: prune, remove-ranks.",
)
@click.option("-o", "--out", callback=options.named, help="The directory to write.")
@click.option(
    "--aligned",
    "--base",
    "aligned",
    help="The aligned model the update is measured from [default: found in the model card or adapter].",
)
@click.option("--unaligned", help="The model before its alignment, for methods that need the alignment direction.")
@click.option("--harmful", help="Harmful prompts with harmful or affirmative answers.")
@click.option("--utility", help="Harmless rows, with --utility-ratio.")
@click.option(
    "--safety", help="Prompts to be refused: --strength auto calibrates on them, refit and others learn from them."
)
@click.option(
    "--benign",
    help="Samples of the data that the model was fine-tuned on, for refit and gradient-reset; may be poisoned.",
)
@click.option("--stats", help="Statistics from `weightguard stats` instead of --harmful.")
@click.option("--neurons", help="Neurons from `weightguard neurons`, for restore, prune and remove-ranks.")
@click.option("--strength", help="Share of the update to remove, or auto: the weakest that restores refusals.")
@click.option("--limit", type=int, help="Take the first rows of each data set only.")
@click.option("--dry-run", is_flag=True, help="Show the plan, write nothing.")
@click.option(
    "--suggest",
    is_flag=True,
    help="Only say what was done to MODEL and the command of the repair that fits, with the reason.",
)
@click.option(
    "--validate", is_flag=True, help="Then measure MODEL before and after, on prompts that the repair did not see."
)
@click.option(
    "--evaluation",
    multiple=True,
    metavar="ROLE=FILE",
    help="What --validate measures on: harmful, benign, over_refusal, task; may be repeated [default: a part of --safety].",
)
@click.option("--save-plan", help="Also write the plan to this file, for `weightguard apply`.")
@options.of_methods
@options.resuming
@options.writing
@options.running
@options.memory
@options.common
@click.pass_context
def repair(context: click.Context, form: str, suggest: bool, **values: Any) -> None:
    """Repair MODEL and write the result, with its manifest and card, to OUT."""
    if suggest:
        _suggest(context, form, values)
        return
    chosen = options.given(values)
    with screen.progress() as progress:
        result = api.repair(**values, **chosen, progress=progress)
    screen.show_repair(result, form)


def _suggest(context: click.Context, form: str, values: dict[str, Any]) -> None:
    used = ("model", "aligned", "out", "offline")
    others = (name for name in values if name not in (*used, "dry_run"))
    lost = next((n for n in others if context.get_parameter_source(n) is not ParameterSource.DEFAULT), None)
    if lost is not None:
        raise click.UsageError(f"--{lost.replace('_', '-')} does not go with --suggest, which repairs nothing")
    with screen.progress() as progress:
        found = api.suggest(**{name: values[name] for name in used}, progress=progress)
    screen_compare.show_suggestion(found, form)


@cli.command()
@click.argument("model")
@click.option("--data", required=True, help="Rows with responses to train on: a file or a hub data set id.")
@click.option("-o", "--out", callback=options.named, required=True, help="The directory to write.")
@click.option("--guard", help="What protects alignment: freeze, freeze-plus, ml-lr, rsn (with --neurons), or salora.")
@click.option("--neurons", help="What to guard: a file that weightguard neurons wrote.")
@click.option(
    "--lora", help="Train an adapter, for example r=16,alpha=32,targets=q_proj+v_proj [default: all weights]."
)
@click.option("--safety", help="Prompts with safe answers, for salora [default: the shipped ones].")
@click.option("--utility", help="Rows of the task, for salora [default: --data].")
@click.option("--steps", type=int, help="Optimizer steps, instead of --epochs.")
@click.option("--epochs", type=float, default=1.0, show_default=True, help="Passes over the data.")
@click.option("--lr", type=float, help="Learning rate [default: 2e-5, with --lora 2e-4].")
@click.option("--batch-size", type=int, default=8, show_default=True, help="Rows a step.")
@click.option("--schedule", type=click.Choice(["cosine", "constant"]), default="cosine", show_default=True)
@click.option("--weight-decay", type=float, default=0.01, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Order of rows, dropout, first factors.")
@click.option("--save-every", type=int, help="Steps between two saved states [default: a tenth of the run].")
@click.option("--resume", is_flag=True, help="Go on with a run that was killed.")
@click.option("--limit", type=int, help="Take the first rows of each data set only.")
@options.of_guards
@options.writing
@options.running
@options.common
def finetune(form: str, **values: Any) -> None:
    """Fine-tune MODEL on the responses of rows, with or without a guard, and write it to OUT."""
    chosen = options.given(values, api.guard_options())
    with screen.progress() as progress:
        result = api.finetune(**values, **chosen, progress=progress)
    screen.show_finetune(result, form)


@cli.command()
@click.argument("plan")
@click.argument("model")
@click.option("-o", "--out", callback=options.named, required=True, help="The directory to write.")
@click.option("--aligned", help="The aligned model, for plans that need it.")
@click.option("--unaligned", help="The model before its alignment, for plans that need it.")
@options.resuming
@options.writing
@options.common
def apply(form: str, **values: Any) -> None:
    """Replay a saved PLAN on MODEL."""
    with screen.progress() as progress:
        result = api.apply(**values, progress=progress)
    screen.show_apply(result, form)


@cli.command()
@click.argument("model")
@click.option("--policy", help="The policy, a TOML file [default: the one shipped with weightguard].")
@click.option("--reference", help="The aligned model that the report must have compared with.")
@click.option(
    "--report",
    multiple=True,
    metavar="FILE",
    help="A report of `weightguard evaluate`, or the .json of `landscape`; may be repeated. Without one the "
    "policy's own data is evaluated.",
)
@click.option(
    "-o",
    "--out",
    callback=options.named,
    multiple=True,
    metavar="FILE",
    help="Write the verdict; by suffix: .json, .sarif, .xml (JUnit), .md, .html, .intoto.json; may be repeated.",
)
@click.option("--force", is_flag=True, help="Replace the files.")
@options.running
@options.judged
def gate(form: str, **values: Any) -> None:
    """Pass, fail (exit code 1) or leave undecided (7) whether MODEL meets a policy."""
    with screen.progress() as progress:
        verdict = api.gate(**values, progress=progress)
    click.echo(api.render(verdict, form))
    api.enforce(verdict)


@cli.command()
@click.argument("output")
@click.option("--against", help="The model the output was made from.")
@click.option("--aligned", help="With --against: the model under a repaired adapter, if not where the adapter says.")
@click.option("--model", help="The model that a verdict is about.")
@click.option("--policy", help="Where the verdict's policy lies now.")
@options.common
def verify(output: str, model: str | None, policy: str | None, offline: bool, form: str, **given: str | None) -> None:
    """Check an OUTPUT against its manifest, or a verdict (a file) against the model, the policy and itself."""
    if api.is_verdict(output, model, policy, given["against"]):
        with screen.progress() as progress:
            verdict = api.verify_verdict(output, model=model or "", policy=policy, offline=offline, progress=progress)
        screen.show_verified_verdict(verdict, form)
        api.enforce(verdict)
        return
    with screen.progress() as progress:
        result = api.verify(output, **given, offline=offline, progress=progress)
    screen.show_verification(result, form)


@cli.command()
@click.argument("model")
@click.option("--reference", help="The aligned model; differences to it are measured as well.")
@options.sets
@click.option(
    "--cipher", help="Ask in letters:SEED or words:SEED, which --attack covert-cipher taught, and read the answers."
)
@click.option(
    "--lm-eval",
    multiple=True,
    metavar="TASK[:METRIC]",
    help="Utility by a task of lm-evaluation-harness (the extra [eval]): its name, or a .yaml file; may be repeated.",
)
@options.judging
@click.option("-o", "--out", callback=options.named, required=True, help="The report to write.")
@click.option("--limit", type=int, help="Take the first rows of each data set only.")
@click.option("--force", is_flag=True, help="Replace the file.")
@options.running
@options.common
def evaluate(form: str, **values: Any) -> None:
    """Measure MODEL on evaluation data, alone or against a reference."""
    with screen.progress() as progress:
        found = api.evaluate(**values, progress=progress)
    screen.show_report(api.render(found, form), values["out"], form)


@cli.command()
@click.argument("model")
@click.option("--harmful", required=True, help="Prompts to be refused, held out from every repair and attack.")
@click.option("--towards", help="Another model of the same architecture: walk to it and beyond, instead of at random.")
@click.option("--plane", is_flag=True, help="Two orthogonal directions at once: two random ones, or --towards and one.")
@click.option("--directions", type=int, default=3, show_default=True, help="Random lines that VISAGE is the mean over.")
@click.option(
    "--points", type=int, help="Places of a line, or of each side of a plane; odd [default: 21, of a plane 11]."
)
@click.option(
    "--range",
    "reach",
    type=float,
    default=0.5,
    show_default=True,
    help="How far from the model, or beyond both, in shares of the norm of each tensor, or of the way.",
)
@click.option(
    "--basin",
    type=click.Choice(["contiguous", "anywhere"]),
    default="contiguous",
    show_default=True,
    help="What VISAGE is the mean over: the stretch around MODEL where some attack fails, or every such place.",
)
@click.option("--judge", default="refusal-phrases", show_default=True, help="As in evaluate; one.")
@click.option(
    "--disjoint-from",
    multiple=True,
    metavar="FILE",
    help="Calibration or attack data that must share no prompt with --harmful; may be repeated.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the directions and of the interval.")
@click.option("--max-new-tokens", type=int, default=64, show_default=True, help="Longest answer.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Prompts answered together.")
@click.option("--limit", type=int, help="Take the first rows of the data set only.")
@click.option(
    "-o",
    "--out",
    callback=options.named,
    multiple=True,
    required=True,
    metavar="FILE",
    help="Write it; by suffix: .json (a report, which gate reads), .svg, .html; may be repeated.",
)
@click.option("--force", is_flag=True, help="Replace the files.")  # fmt: skip
@options.running
@options.common
def landscape(form: str, **values: Any) -> None:
    """Measure attack success around MODEL (VISAGE), on the way to another model, or in a plane; moved in memory only."""
    with screen.progress() as progress:
        found = api.landscape(**values, progress=progress)
    screen_landscape.show_landscape(found, values["out"], form)


@cli.command()
@click.option(
    "-o", "--out", callback=options.named, default="weightguard-demo", show_default=True, help="Where they are left."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which lab world.")
@click.option("--force", is_flag=True, help="Replace an earlier demo.")
@click.option("--format", "form", type=click.Choice(["human", "json"]), default="human", show_default=True)
def demo(out: str, seed: int, force: bool, form: str) -> None:
    """Attack, repair and controls on a tiny model, in about a minute."""
    with screen.progress() as progress:
        result = api.demo(out, seed=seed, force=force, progress=progress)
    screen.show_demo(result, form)
