"""The demo's last page: what every job learnt, where its adapter lies, and the two comparisons."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from mlora_sched.demo.measure import PeftProof, Score
from mlora_sched.demo.training import DemoJob, Session, Trained


@dataclass(frozen=True)
class Learnt:
    """One job: trained in company and alone, scored before and after."""

    job: DemoJob
    company: Trained
    alone: Trained
    before: Score
    after: Score

    @property
    def same(self) -> bool:
        """The adapter's bytes do not depend on the company."""
        return self.company.digest == self.alone.digest


def show_learnt(console: Console, rows: list[Learnt]) -> None:
    """Held-out loss and exact answers before and after, a line a job."""
    table = Table(title="What the adapters learnt (held-out rows)", title_justify="left")
    table.add_column("job", no_wrap=True)
    table.add_column("method")
    for name in ("loss before", "after", "exact before", "after"):
        table.add_column(name, justify="right")
    for row in rows:
        spec = row.job.spec.adapter
        table.add_row(
            row.job.spec.name,
            f"{spec.method} r{spec.r}",
            f"{row.company.loss.before:.3f}",
            f"{row.company.loss.after:.3f}",
            f"{row.before.exact:.0%}",
            f"{row.after.exact:.0%}",
        )
    console.print(table)
    console.print(f"adapters: {rows[0].company.adapter.parent}/<job>", highlight=False, soft_wrap=True)


def show_promise(console: Console, rows: list[Learnt]) -> None:
    """The sha256 of each adapter, trained in company and alone."""
    table = Table(title="Alone or in company (sha256 of adapter_model.safetensors)", title_justify="left")
    for name in ("job", "in company", "alone", ""):
        table.add_column(name, no_wrap=True)
    for row in rows:
        verdict = "[green]the same[/]" if row.same else "[red]different[/]"
        table.add_row(row.job.spec.name, row.company.digest[:20], row.alone.digest[:20], verdict)
    console.print(table)


def show_proof(console: Console, proof: PeftProof) -> None:
    """PEFT beside this engine, for one adapter."""
    verdict = "[green]agrees[/]" if proof.agrees else "[red]disagrees[/]"
    console.print(
        f"PEFT loads {proof.name} and {verdict}: held-out loss {proof.peft.loss:.7f} (here {proof.ours.loss:.7f}), "
        f"exact answers {proof.peft.exact:.0%} generated (here {proof.ours.exact:.0%})",
        highlight=False,
    )


def show_times(console: Console, together: Session, in_turn: Session) -> None:
    """How long the same jobs took together and one after another."""
    console.print(
        f"{len(together.jobs)} jobs together: {together.seconds:.1f} s ({together.tokens / together.seconds:,.0f} "
        f"trained tokens/s); one after another: {in_turn.seconds:.1f} s "
        f"({in_turn.tokens / in_turn.seconds:,.0f}): {in_turn.seconds / together.seconds:.2f} times as long",
        highlight=False,
    )
