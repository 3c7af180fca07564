"""Flags that several commands share, and the flags that come from the methods' own fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from weightguard import api, forms
from weightguard.errors import InputError

Command = Callable[..., Any]

# A strength has one flag for all methods, which also takes "auto".
_COMMON = ("strength",)


def named(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A place to write to, which an empty name is not: as a path that would be the current directory."""
    if value == "":
        raise click.UsageError(f"{parameter.opts[0]}: the output path is empty")
    return value


def running(command: Command) -> Command:
    """How models are run."""
    for decorate in (
        click.option(
            "--max-length", type=int, default=2048, show_default=True, help="Cut calibration rows at this many tokens."
        ),
        click.option(
            "--threads", type=int, help="torch threads [default: all cores]; the last bits of statistics depend on it."
        ),
        click.option("--dtype", default="float32", show_default=True, help="dtype of the forward pass."),
        click.option(
            "--device",
            default="cpu",
            show_default=True,
            help="Where the model runs: cpu, cuda, cuda:1 ...; auto: over every GPU.",
        ),
    ):
        command = decorate(command)
    return command


def memory(command: Command) -> Command:
    """How much memory is used, for commands that run and repair a model part by part."""
    text = (
        "Keep the memory of the process below this, 4GB for example: all that it allocates is counted, Python and its "
        "libraries too (about 0.2 GB), but not files that are mapped; refused where the largest piece does not fit."
    )
    return click.option("--max-memory", metavar="SIZE", help=text)(command)


def judging(command: Command) -> Command:
    """How models are asked and judged."""
    for decorate in (
        click.option("--disjoint-from", multiple=True, metavar="FILE",
                     help="Calibration or attack data that must share no prompt with the evaluation; may be repeated."),
        click.option("--examples", type=int, default=3, show_default=True,
                     help="Answers of each judged set to keep in the report."),
        click.option("--batch-size", type=int, default=32, show_default=True, help="Prompts answered together."),
        click.option("--max-new-tokens", type=int, default=64, show_default=True, help="Longest answer."),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap."),
        click.option("--match", default="exact", show_default=True,
                     help="How answers are compared with responses: exact, contains or final-number."),
        click.option("--judge", "judges", multiple=True, default=("refusal-phrases",), show_default=True,
                     help="refusal-phrases[:LIST], contains:FILE, a classifier checkpoint, llama-guard:MODEL, "
                          "wildguard:MODEL, beaver-dam:MODEL or http(s)://host/v1#model; may be repeated."),
    ):  # fmt: skip
        command = decorate(command)
    return command


def sets(command: Command) -> Command:
    """What models are evaluated on."""
    for decorate in (
        click.option("--task", help="Rows of the user's task with the right response."),
        click.option("--over-refusal", help="Harmless prompts that sound dangerous and must be answered."),
        click.option("--benign", help="Harmless rows; those with a response measure utility."),
        click.option("--harmful", help="Prompts to be refused, held out from every repair and attack."),
    ):
        command = decorate(command)
    return command


def common(command: Command) -> Command:
    """Output format and offline mode."""
    return _shared(command, ("human", "json"))


def judged(command: Command) -> Command:
    """The same, with every form of a verdict."""
    return _shared(command, api.verdict_forms())


def _shared(command: Command, forms: Sequence[str]) -> Command:
    for decorate in (
        click.option("--offline", is_flag=True, help="Use only what the hub cache holds."),
        click.option("--format", "form", type=click.Choice(list(forms)), default="human", show_default=True),
        click.option("--config", type=click.Path(dir_okay=False, path_type=Path), is_eager=True, expose_value=False,
                     callback=_read_config, help="TOML file of options; flags win over it."),
    ):  # fmt: skip
        command = decorate(command)
    return command


def writing(command: Command) -> Command:
    """How an output directory is written."""
    for decorate in (
        click.option(
            "--verify-write/--no-verify-write", default=True, show_default=True, help="Read all again after writing."
        ),
        click.option("--force", is_flag=True, help="Replace an earlier output of weightguard."),
    ):
        command = decorate(command)
    return command


def resuming(command: Command) -> Command:
    """Going on after a kill."""
    return click.option("--resume", is_flag=True, help="Keep the shards that a killed run at OUT had finished.")(
        command
    )


def of_methods(command: Command) -> Command:
    """One flag per field of any method; a flag the chosen method lacks is refused when it runs."""
    return _flags(command, api.method_options())


def of_kinds(command: Command) -> Command:
    """One flag per field of any kind of neurons; a flag the chosen kind lacks is refused when it runs."""
    return _flags(command, api.kind_options())


def of_guards(command: Command) -> Command:
    """One flag per option of any guard; a flag the chosen guard lacks is refused when it runs."""
    return _flags(command, api.guard_options())


def of_attacks(command: Command) -> Command:
    """One flag per field of any attack; a flag the chosen attack lacks is refused when it runs."""
    return _flags(command, api.attack_options())


def _flags(command: Command, found: dict[str, dict[str, Any]]) -> Command:
    for name, entry in reversed(found.items()):
        if name in _COMMON:
            continue
        choices = entry["choices"]
        plain = click.INT if entry["type"].startswith("int") else click.STRING
        kind = click.Choice(list(choices)) if choices else plain
        text = f"{entry['help']} ({', '.join(entry['of'])})"
        command = click.option(f"--{name.replace('_', '-')}", name, type=kind, default=None, help=text)(command)
    return command


def given(values: dict[str, Any], found: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The options of methods, or of what else is `found`, among `values` that were given, popped out of it."""
    names = [name for name in (api.method_options() if found is None else found) if name not in _COMMON]
    return {name: value for name in names if (value := values.pop(name, None)) is not None}


def _read_config(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        values = forms.toml(path.read_bytes(), f"--config {path}")
    except OSError as error:
        raise click.UsageError(f"--config {path}: {error.strerror}") from error
    except InputError as error:
        raise click.UsageError(str(error)) from error
    if any("\0" in str(value) for value in values.values()):
        raise click.UsageError(f"--config {path}: a value holds a NUL character")
    known = {parameter.name for parameter in context.command.params}
    flags = {flag.lstrip("-"): parameter.name for parameter in context.command.params for flag in parameter.opts}
    named = {**flags, **{str(n).replace("_", "-"): n for n in known}}
    flat = {named.get(key.replace("_", "-"), key): value for key, value in values.items()}
    unknown = [key for key in flat if key not in known]
    if unknown:
        raise click.UsageError(f"--config {path}: {unknown[0]} is not an option of this command")
    context.default_map = {key: str(v) if isinstance(v, float) else v for key, v in flat.items()}
