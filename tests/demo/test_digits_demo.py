"""The demo counts the proponents inside an interval and before it, and says what it counted."""

from __future__ import annotations

import torch

from journey.demo.digits import DigitsDataset
from journey.demo.digits_demo import Decision, DemoResult, _decide, format_result
from journey.generation.transitions import Transition
from journey.scores.scores import Scores


def test_proponents_are_counted_over_the_steps_of_the_interval_and_over_those_before() -> None:
    labels = torch.tensor([3] * 10 + [7] * 10)
    dataset = DigitsDataset(torch.zeros(20, 1, 4, 4), labels)
    outcomes = torch.tensor([[0.0] * 20, [0.0] * 20, [1.0] * 20, [1.0] * 20], dtype=torch.float64)
    found = Transition(torch.tensor([900, 600, 300, 0]), outcomes, 0.95, torch.zeros(1, 3, dtype=torch.float64))
    assert found.interval == (301, 601)
    sevens = torch.linspace(0, 1, 20)  # the last ten, the sevens, score highest
    values = torch.stack([-sevens, sevens, sevens, -sevens, -sevens])[None]  # at 900, 600, 400, 300 and 0
    scores = Scores(values, torch.tensor([900, 600, 400, 300, 0]), list(range(20)), 0.1)
    decision = _decide(found, scores, 0, 7, dataset)
    assert (decision.interval, decision.inside, decision.before) == ((301, 601), 10, 0)
    assert decision.likelihood == [0, 0, 1, 1]
    flat = Transition(found.timesteps, outcomes[[0, 0, 0, 0]], 0.95, found.bootstrap)
    assert _decide(flat, scores, 0, 7, dataset).interval is None


def test_findings_are_printed_with_bands_and_the_test() -> None:
    curve = ([900, 0], [0.25, 1.0], [0.12, 0.86], [0.45, 1.0])
    decisions = [Decision(7, (301, 601), *curve, inside=6, before=2), Decision(3, None, *curve)]
    text = format_result(DemoResult([900, 0], [0.2, 0.6], 0.1, decisions, 0.085, {"train": 12.3}))
    assert "a 7: 600 to 301" in text
    assert "a 3: no rise found" in text
    assert "12%-45%" in text
    assert "over the 1 images" in text
    assert "inside the interval 6 of 10, over the steps before it 2 of 10; more inside for 1 images" in text
    assert "p = 0.085" in text
