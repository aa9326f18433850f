"""The accounts by which packs are formed between two words of the daemon, rule by rule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.sched.ledger import Ledger
from mlora_sched.sched.plan import Account

GROUPS = st.sampled_from("abc")
WORK = st.integers(0, 50).map(float)


def ledger(**paid: float) -> Ledger:
    """One that has heard of these groups, all of weight 1."""
    made = Ledger()
    made.hear({group: Account(each) for group, each in paid.items()})
    return made


def paid(of: Ledger) -> dict[str, float]:
    return {group: account.paid for group, account in of.with_unfinished({}).items()}


def test_a_step_is_paid_for_when_it_is_done_and_by_weight() -> None:
    of = Ledger()
    of.hear({"a": Account(10.0, 2.0), "b": Account(10.0, 0.5)})
    of.commit("a", 6.0)
    of.commit("b", 6.0)
    of.commit("nobody", 6.0)
    assert paid(of) == {"a": 13.0, "b": 22.0}


def test_what_is_unfinished_counts_for_as_long_as_it_is() -> None:
    of = Ledger()
    of.hear({"a": Account(10.0, 2.0)})
    assert of.with_unfinished({"a": 6.0})["a"].paid == 13.0
    assert of.with_unfinished({"a": 2.0})["a"].paid == 11.0
    assert paid(of) == {"a": 10.0}


def test_a_group_nobody_has_told_of_is_as_the_lowest_is() -> None:
    assert ledger(a=10.0, b=30.0).with_unfinished({"new": 5.0, "b": 1.0})["new"].paid == 15.0
    assert Ledger().with_unfinished({"new": 5.0}) == {"new": Account(5.0)}


def test_of_what_the_daemon_says_and_what_is_known_the_larger_is_right() -> None:
    of = ledger(a=10.0, b=10.0)
    of.commit("a", 5.0)
    of.hear({"a": Account(12.0), "b": Account(20.0)})
    assert paid(of) == {"a": 15.0, "b": 20.0}
    of.hear({"b": Account(20.0)})
    of.hear({"a": Account(12.0), "b": Account(20.0)})
    assert paid(of)["a"] == 15.0, "what a group had paid that took no part for a while"


def test_who_takes_part_is_who_was_told_of_last() -> None:
    of = ledger(a=10.0, b=10.0)
    of.hear({"b": Account(10.0, 3.0, waits=True)})
    assert of.with_unfinished({}) == {"b": Account(10.0, 3.0, waits=True)}


def test_a_newcomer_is_as_the_lowest_who_is_there_with_what_has_run() -> None:
    of = ledger(a=10.0, b=30.0)
    of.join("new", Account(2.0, new=True), {"a": 3.0})
    of.join("old", Account(2.0), {"a": 3.0})
    assert paid(of) == {"a": 10.0, "b": 30.0, "new": 13.0, "old": 2.0}, "who had work before has its claim"
    assert of.lifted() == {"new": 13.0}
    of.join("a", Account(0.0, new=True), {})
    assert paid(of)["a"] == 10.0, "another job of a group that is there"


def test_who_got_all_is_lifted_to_the_lowest_of_those_who_did_not() -> None:
    of = ledger(a=1.0, b=20.0, c=30.0, d=25.0)
    of.served(["b", "c"], {})
    behind = 20.0
    assert paid(of) == {"a": behind, "b": 20.0, "c": 30.0, "d": 25.0}
    assert of.lifted() == {"a": behind}
    assert of.lifted() == {}, "told once"


def test_who_waits_for_a_place_was_kept_waiting_too() -> None:
    of = Ledger()
    of.hear({"a": Account(1.0, waits=True), "b": Account(5.0), "c": Account(0.0)})
    of.served([], {})
    assert paid(of) == {"a": 1.0, "b": 5.0, "c": 1.0}


def test_when_all_got_all_they_are_equal() -> None:
    of = ledger(a=1.0, b=20.0)
    of.served([], {"a": 2.0, "b": 3.0})
    assert paid(of) == {"a": 23.0, "b": 23.0}


def test_what_is_unfinished_of_those_kept_waiting_counts_for_their_claim() -> None:
    of = ledger(a=1.0, b=20.0)
    of.served(["b"], {"b": 3.0})
    assert paid(of)["a"] == 23.0


def test_a_group_that_takes_no_part_any_more_is_not_told_as_lifted() -> None:
    of = ledger(a=1.0, b=20.0)
    of.served(["b"], {})
    of.hear({"b": Account(20.0)})
    assert of.lifted() == {}


@given(
    st.dictionaries(GROUPS, st.builds(Account, WORK, st.sampled_from([0.5, 1.0, 2.0]), st.booleans()), min_size=1),
    st.sets(GROUPS),
    st.dictionaries(GROUPS, WORK),
)
def test_a_pack_lifts_nobody_who_was_kept_waiting_and_lowers_nobody(
    told: dict[str, Account], kept_waiting: set[str], unfinished: dict[str, float]
) -> None:
    of = Ledger()
    of.hear(told)
    before = paid(of)
    of.served(kept_waiting, unfinished)
    after, lifted = paid(of), of.lifted()
    assert all(after[group] >= before[group] for group in before)
    assert lifted == {group: after[group] for group in before if after[group] > before[group]}
    assert not lifted.keys() & (kept_waiting | {group for group, account in told.items() if account.waits})


def test_groups_that_are_served_in_turn_stay_apart_by_their_weights() -> None:
    """A pack has room for one of two chunks: who runs got all, and keeps its claim for what the other got before."""
    of = ledger(two=0.0, one=0.0)
    of.hear({"two": Account(0.0, weight=2.0), "one": Account(0.0)})
    turns = []
    for _ in range(30):
        accounts = of.with_unfinished({})
        runs = min(("two", "one"), key=lambda name: accounts[name].paid)
        of.commit(runs, 40.0)
        of.served([name for name in accounts if name != runs], {})
        turns.append(runs)
    assert turns.count("two") == 20


def test_what_a_group_is_lifted_by_is_no_claim_of_the_others() -> None:
    of = ledger(rare=0.0, busy=1000.0)
    of.served(["busy"], {})
    assert paid(of)["rare"] == 1000.0
    of.commit("rare", 1.0)
    of.commit("busy", 50.0)
    of.served(["busy"], {})
    of.commit("busy", 50.0)
    of.served(["busy"], {})
    assert paid(of)["rare"] == 1100.0 - 50.0, "behind by a pack, and not by what it was lifted by"
