"""What `attack` shows, and `validate` where cells are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from weightguard.cli.screen import _json, _shown

if TYPE_CHECKING:
    from weightguard.api.attacking import Attacked
    from weightguard.api.testing import Validated


def show_attack(result: Attacked, form: str) -> None:
    if form == "json":
        _json({"out": str(result.out), "adapter": result.adapter, "notes": result.notes, "command": result.command,
               "losses": result.losses, "manifest": result.manifest.data})  # fmt: skip
        return
    for note in result.notes:
        click.echo(f"* {note}", err=True)
    click.echo("options: " + ", ".join(f"{key} {value}" for key, value in result.manifest.data["options"].items()))
    if result.losses:
        last = result.losses[-10:]
        click.echo(f"{len(result.losses)} steps; loss {result.losses[0]:.4f} at first, {sum(last) / len(last):.4f} "
                   f"over the last {len(last)}")  # fmt: skip
    what = "an adapter over MODEL" if result.adapter else "a full checkpoint"
    click.echo(f"\nwrote {_shown(result.out)}, {what}; again by:\n  {result.command}")


def show_unfinished(found: Validated, form: str) -> None:
    if form == "json":
        _json({"done": found.done, "missing": found.missing})
        return
    click.echo(f"done: {', '.join(found.done)}\nno report yet; {len(found.missing)} cells are missing:")
    for name in found.missing:
        click.echo(f"  --cell '{name}'")
