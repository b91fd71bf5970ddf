"""The learning rate over a whole run: its values, and that rounds go on where the last one stopped."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from medx.privacy.base import SampledGaussian
from medx.trainer.schedule import learning_rate_factor
from tests.federation import sum_examples
from tests.trainer.examples import relative_error
from tests.trainer.test_local_training import make_plan, make_trainer, run


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 2, [0.5, 1, 1, 0.5]),
        ("cosine", 0, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("cosine", 2, [0.5, 1, 1, 0.5]),
        ("cosine", 9, [1 / 9, 2 / 9, 3 / 9, 4 / 9]),
    ],
)
def test_factors(schedule, warmup, expected):
    assert [learning_rate_factor(schedule, step, 4, warmup) for step in range(4)] == pytest.approx(expected)


def test_the_schedule_runs_on_over_rounds_and_the_constant_one_changes_no_bit():
    trainer = make_trainer(schedule="cosine", warmup_steps=1)
    plan = replace(make_plan(steps=4), step=SampledGaussian(1.0, 0.0, 0.5))
    halves = replace(plan, steps_per_round=2, num_rounds=2)
    _, whole = run(trainer, plan)
    _, half = run(trainer, halves)
    _, rest = run(trainer, halves, state=half.model, first_step=2)
    _, again = run(trainer, halves, state=half.model)  # the planted fault: every round starts the schedule anew
    assert relative_error(list(rest.state.values()), list(whole.state.values())) < 1e-6
    assert relative_error(list(again.state.values()), list(whole.state.values())) > 1e-4
    assert make_trainer().rate_at(3, plan) == make_trainer().learning_rate_for(plan)


@pytest.mark.parametrize("privacy", ["distributed_dp", "local_dp"])
def test_the_rate_follows_the_round_wherever_the_step_is_taken(privacy, tmp_path):
    def moves(schedule: str) -> list[torch.Tensor]:
        trainer = {"schedule": schedule, "momentum": 0.0, "local_steps": 1, "share_momentum": False}
        job = sum_examples.make(tmp_path / schedule, privacy=privacy, secure=False, rounds=2, trainer=trainer)
        states = [torch.from_numpy(server.state.flat()) for server in sum_examples.run(job)]
        return [after - before for before, after in itertools.pairwise(states)]

    (first, second), (first_linear, second_linear) = moves("constant"), moves("linear")
    torch.testing.assert_close(first_linear, first)
    torch.testing.assert_close(second_linear, second / 2)
