"""The study: methods × data sets × seeds, trained together, scored apart.

Rows are drawn once: every method and every seed learns from the same ones and is asked the same questions. A seed
decides an adapter's start, the order of its rows and its dropout. Learning rates are chosen first, one a method, by
the loss on rows of the training files that no job learns from, with a seed that is not reported.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlora_sched.adapters.registry import build_adapter
from mlora_sched.bench.quality.plan import Contestant, Plan
from mlora_sched.bench.quality.questions import Question, chance, commonest, drawn, read_questions, write_rows
from mlora_sched.bench.quality.record import Base, Method, Quality, Task, Trained, Tried
from mlora_sched.bench.quality.scoring import exported, score
from mlora_sched.bench.quality.training import Ended, Folders, train_together
from mlora_sched.bench.setting import Setting, load, machine
from mlora_sched.data.token_set import TokenSet
from mlora_sched.data.tokens import prepare
from mlora_sched.errors import UserError
from mlora_sched.spec.job import JobSpec
from mlora_sched.toybase.train import RECIPE_FILE

_DRAW = 0  # seed of the rows that are taken


def run(setting: Setting, plan: Plan) -> Quality:
    """Choose rates, train, score.

    Raises:
        UserError, NotFound: the rows are not there, or not such as are needed; a job failed.
    """
    before, began = load(), time.monotonic()
    study = _Study(setting, plan)
    tasks = tuple(study.task(one) for one in study.sets)
    methods = study.methods()
    trained = study.trained(methods)
    return Quality(
        base=_base(setting),
        settings=plan.settings(),
        machine=machine(setting, before),
        seconds=time.monotonic() - began,
        tasks=tasks,
        methods=methods,
        trained=trained,
    )


@dataclass(frozen=True, eq=False)
class _Set:
    """A data set, laid out.

    Attributes:
        train, chosen, judged: names of files: to learn from; of those the first, which rates are tried on; others, by
            which rates are judged.
        questions, held_out: what is asked, and the rows of the right answers.
    """

    name: str
    train: str
    chosen: str
    judged: str
    train_tokens: int
    questions: list[Question]
    held_out: TokenSet


@dataclass(frozen=True, eq=False)
class _Job:
    """One that is trained: of what and on what."""

    contestant: Contestant
    of: _Set
    seed: int
    spec: JobSpec


class _Study:
    """One run: where its files are, and what is done with them."""

    def __init__(self, setting: Setting, plan: Plan) -> None:
        self._setting, self._plan = setting, plan
        self._files: dict[str, Path] = {}
        self._folders = Folders(self._files, setting.work / "cache", setting.work / "jobs")
        if setting.data is None:
            raise UserError("--data: quality is measured on real rows; name the directory that their files are in")
        self.sets = [self._lay_out(task, setting.data) for task in plan.tasks]

    # ------------------------------------------------------------------ rows

    def _lay_out(self, task: str, data: Path) -> _Set:
        plan = self._plan
        train_file, test_file = data / f"{task}_train.jsonl", data / f"{task}_test.jsonl"
        rows = drawn(read_questions(train_file), plan.train_rows + plan.choice_judged, _DRAW, str(train_file))
        learnt, others = rows[: plan.train_rows], rows[plan.train_rows :]
        questions = drawn(read_questions(test_file), plan.questions, _DRAW, str(test_file))
        train = self._write(f"{task}.jsonl", _answers(learnt))
        return _Set(
            name=task,
            train=train,
            chosen=self._write(f"{task}-first.jsonl", _answers(learnt[: plan.choice_rows])),
            judged=self._write(f"{task}-judged.jsonl", _answers(others)),
            train_tokens=int(self._tokens(train).lengths.sum()),
            questions=questions,
            held_out=self._tokens(self._write(f"{task}-held-out.jsonl", _answers(questions))),
        )

    def _write(self, name: str, rows: Iterator[Mapping[str, str]]) -> str:
        self._files[name] = write_rows(rows, self._setting.work / name)
        return name

    def _tokens(self, name: str) -> TokenSet:
        """A file's rows, tokenised as a job would; the base's tokenizer must leave the answers on."""
        spec = self._plan.spec("rows", self._plan.contestants[0], name, rate=1.0, seed=0)
        prepared = prepare(spec, self._files, self._setting.trainer.tokenizer, self._folders.cache)
        if prepared.stats.truncated:
            raise UserError(
                f"--max-length: {prepared.stats.truncated} rows of {name} have more than {self._plan.max_length} "
                f"tokens with this base's tokenizer and would lose their answers; set it to more"
            )
        return prepared.train

    # ------------------------------------------------------------------ jobs

    def task(self, one: _Set) -> Task:
        """What is known of a data set without any training; an adapter before its first step changes nothing."""
        trainer, spec = self._setting.trainer, self._plan.spec("base", self._plan.contestants[0], one.train, 1.0, 0)
        untouched = build_adapter(spec.adapter, trainer.base, spec.training.seed)
        return Task(
            name=one.name,
            train_rows=self._plan.train_rows,
            train_tokens=one.train_tokens,
            questions=len(one.questions),
            chance=chance(one.questions),
            commonest=commonest(one.questions),
            untrained=score(trainer, untouched, one.held_out),
        )

    def methods(self) -> tuple[Method, ...]:
        """Every method with the learning rate that did best of those tried, on the mean of the data sets."""
        plan = self._plan
        tried = [
            _Job(it, one, plan.choice_seed, plan.choosing(it, one.name, one.chosen, one.judged, rate))
            for it, rate, one in itertools.product(plan.contestants, plan.rates, self.sets)
        ]
        ended = self._train(tried)
        return tuple(_method(it, [job for job in tried if job.contestant is it], ended) for it in plan.contestants)

    def trained(self, methods: Sequence[Method]) -> tuple[Trained, ...]:
        """Train the jobs that are reported, and score their adapters as they were exported."""
        plan, trainer = self._plan, self._setting.trainer
        rates = {method.name: method.learning_rate for method in methods}
        jobs = [
            _Job(it, one, seed, plan.spec(f"{it.key}-{one.name}-{seed}", it, one.train, rates[it.name], seed))
            for it, one, seed in itertools.product(plan.contestants, self.sets, plan.seeds)
        ]
        self._train(jobs)
        found = []
        for job in jobs:
            self._setting.report(f"scoring {job.spec.name}")
            adapter = exported(job.spec, self._folders.adapter(job.spec.name), trainer.base)
            figures = score(trainer, adapter, job.of.held_out)
            found.append(Trained(method=job.contestant.name, task=job.of.name, seed=job.seed, figures=figures))
        return tuple(found)

    def _train(self, jobs: Sequence[_Job]) -> dict[str, Ended]:
        found: dict[str, Ended] = {}
        together = self._plan.together or len(jobs)
        for at in range(0, len(jobs), together):
            group = [job.spec for job in jobs[at : at + together]]
            found |= train_together(self._setting.trainer, group, self._folders, self._setting.report)
        return found


def _method(contestant: Contestant, tried: Sequence[_Job], ended: Mapping[str, Ended]) -> Method:
    losses: dict[float, dict[str, float]] = {}
    for job in tried:
        loss = ended[job.spec.name].eval_loss
        assert loss is not None, "it had rows to be judged by"
        losses.setdefault(job.spec.training.learning_rate, {})[job.of.name] = loss
    rates = tuple(Tried(learning_rate=rate, losses=by_task) for rate, by_task in losses.items())
    first = tried[0].spec
    return Method(
        name=contestant.name,
        adapter=first.adapter.model_dump(mode="json"),
        parameters=ended[first.name].parameters,
        tried=rates,
        learning_rate=min(rates, key=lambda it: it.mean).learning_rate,
    )


def _answers(questions: Sequence[Question]) -> Iterator[Mapping[str, str]]:
    """Rows with the right answers."""
    return (it.row for it in questions)


def _base(setting: Setting) -> Base:
    trainer = setting.trainer
    config = trainer.base.model.config.get_text_config()
    return Base(
        name=setting.base.name,
        sha256=trainer.origin.base_hash,
        parameters=sum(it.numel() for it in trainer.base.model.parameters()),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        toy=(setting.base / RECIPE_FILE).is_file(),
    )
