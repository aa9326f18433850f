"""`mlora-sched base make`: a small base model made on the spot, for trying things where no hub can be reached."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def base() -> None:
    """Make a base model to try things on."""


@base.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--size", type=click.Choice(["tiny", "small", "bench"]), default="tiny", show_default=True)
@click.option("--steps", type=click.IntRange(min=0), help="Training steps; each size has its own default.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="CPU threads of torch.")
def make(directory: Path, size: str, steps: int | None, seed: int, threads: int) -> None:
    """Train a small Llama on generated exercises and save it at DIR as a Hugging Face directory.

    tiny has about 1 million parameters (about a minute on two cores), small about 5 million; bench is wide and
    untrained, for measuring speed. The same command gives the same bytes on the same kind of CPU; where DIR already
    holds that very base, nothing is done.
    """
    from transformers.utils import logging

    from mlora_sched.cli.local.base_progress import making
    from mlora_sched.toybase.train import Made, Recipe, Size, make_base

    logging.disable_progress_bar()
    recipe = Recipe.of(Size(size), steps, seed, threads)
    with making(f"{size} base") as report:
        made = make_base(directory, recipe, report)
    what = "is already there, made by the same recipe" if made is Made.CACHED else "is made"
    click.echo(f"{directory}: the {size} base {what} ({recipe.steps} steps, seed {seed})")
