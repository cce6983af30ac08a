"""A short run of the fuzzer; the long one is ``python -m tests.fuzz --calls 200000``."""

import pytest

from tests import fuzz


@pytest.mark.compiled
def test_random_calls_are_right_or_raise_an_error_of_ours():
    outcomes = fuzz.run(seed=1, calls=3000)
    # every kind of call came to both kinds of end
    for wanted in (
        "trained",
        "evaluated",
        "differentiated",
        "stats",
        "constructed",
        "layer",
        "fused",
        "normed",
    ):
        assert outcomes[wanted] > 50
    for wanted in (
        "",
        " of backward",
        " of stats",
        " of a constructor",
        " of a layer",
        " of a norm",
    ):
        assert sum(n for k, n in outcomes.items() if k.endswith("Error" + wanted)) > 20


def test_a_wrong_outcome_stops_the_run_and_can_be_played_again(monkeypatch, capsys):
    class Broken(fuzz.Caller):
        def __init__(self, seed, index):
            super().__init__(seed, index)
            if index == 3:
                raise fuzz.Wrong("on purpose")

    monkeypatch.setattr(fuzz, "Caller", Broken)
    assert fuzz.main(["--seed", "5", "--calls", "9"]) == 1
    assert "--seed 5 --start 3 --calls 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: {}["key"], "leaked"),  # this file is not fastbn
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: None, "accepted"),
    ],
)
def test_the_judge_of_errors(function, reason):
    call = fuzz.Caller(0, 0)
    call.bad.append("something")
    with pytest.raises(fuzz.Wrong, match=reason):
        call.made(function)
