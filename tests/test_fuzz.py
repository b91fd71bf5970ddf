"""A few seconds of ``tests.fuzz``; five minutes of it are run by hand."""

from tests.fuzz import TARGETS, fuzz


def test_damaged_messages_raise_no_exception_but_ours_and_one_liar_ends_no_round() -> None:
    counts, wrong = fuzz(3.0, seed=1)
    assert wrong == []
    assert {name for name, outcome in counts if outcome in ("read", "refused")} == set(TARGETS)
