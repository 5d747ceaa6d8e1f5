"""The strongest scores of blocks that come one after the other are those of all scores at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from journey.scores.errors import ScoreErrors
from journey.scores.ranked import Ranked, Top
from journey.scores.scores import Scores
from journey.scores.top import TopCollector, TopScores


def oracle(ids: list[Any], values: Tensor, k: int) -> list[list[list[list[Any]]]]:
    """Ids by sorting everything: proponents and opponents of each query and step, equal scores by id."""
    found = []
    for sign in (-1, 1):
        rows = [[[v * sign for v in step] for step in query] for query in values.tolist()]
        found.append(
            [[[i for _, i in sorted(zip(step, ids, strict=True))][:k] for step in query] for query in rows],
        )
    return found


def ids_of(top: Top) -> list[Any]:
    return [ranked.ids.tolist() for ranked in top]


def equal(first: Ranked, second: Ranked) -> bool:
    return (
        np.array_equal(first.ids, second.ids)
        and torch.equal(first.values, second.values)
        and torch.equal(first.errors.nan_to_num(-1), second.errors.nan_to_num(-1))
    )


@st.composite
def cases(draw: Any) -> tuple[list[Any], Tensor, int, list[int], list[int]]:
    """Ids of either kind, scores with many ties, k, an order of the columns and the ends of blocks."""
    count = draw(st.integers(1, 60))
    strings = draw(st.booleans())
    texts = st.text("ab\u00e9\U0001f600", min_size=1, max_size=4)
    ids = draw(
        st.lists(texts if strings else st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count, unique=True)
    )
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    queries, steps = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    numbers = st.integers(-levels, levels).map(lambda v: v / levels)
    flat = draw(st.lists(numbers, min_size=queries * steps * count, max_size=queries * steps * count))
    values = torch.tensor(flat, dtype=torch.float32).view(queries, steps, count)
    order = draw(st.permutations(range(count)))
    ends = sorted(draw(st.sets(st.integers(0, count), max_size=8)) | {count})
    return ids, values, draw(st.integers(1, count)), order, ends


@settings(max_examples=150, deadline=None)
@given(cases())
def test_neither_order_nor_size_of_blocks_changes_the_ranks(case: Any) -> None:
    ids, values, k, order, ends = case
    scores = Scores(values, torch.arange(values.shape[1]), ids, 0.1)
    expected = scores.top(k)
    assert ids_of(expected) == oracle(ids, values, k)
    collector = TopCollector(k)
    for begin, end in zip([0, *ends], ends, strict=False):
        columns = order[begin:end]
        collector.add([ids[c] for c in columns], values[..., columns])
    found = collector.top()
    assert collector.num_train == len(ids)
    assert all(map(equal, found, expected))


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_merging_shards_is_associative_and_gives_what_all_at_once_gives(case: Any, data: Any) -> None:
    ids, values, k, order, ends = case

    def scored(columns: list[int]) -> TopScores:
        top = TopCollector(k).add([ids[c] for c in columns], values[..., columns], values[..., columns].abs()).top()
        return TopScores(*top, k=k, num_train=len(columns), timesteps=torch.arange(values.shape[1]), damping=0.1)

    shards = [scored(order[begin:end]) for begin, end in zip([0, *ends], ends, strict=False) if begin < end]
    whole = scored(list(range(len(ids))))
    cut = data.draw(st.integers(0, len(shards)))
    nested = [TopScores.merge(part) for part in (shards[:cut], shards[cut:]) if part]
    for merged in (TopScores.merge(shards), TopScores.merge(shards[::-1]), TopScores.merge(nested)):
        assert (merged.k, merged.num_train) == (k, len(ids))
        assert all(map(equal, merged.top(k), whole.top(k)))


def test_large_blocks_with_few_that_enter_are_ranked_as_sorting_ranks_them() -> None:
    generator = np.random.default_rng(0)
    values = torch.from_numpy(generator.standard_normal((2, 1, 30_000)).astype(np.float32))
    values[0] = values[0].sort().values  # every block enters wholly
    values[1] = values[1].round(decimals=1)  # hundreds of ties at the bar
    ids = generator.permutation(30_000)
    collector = TopCollector(50)
    for begin in range(0, 30_000, 4_096):
        collector.add(ids[begin : begin + 4_096], values[..., begin : begin + 4_096])
    for ranked, sign in zip(collector.top(), (-1, 1), strict=True):
        for row in range(2):
            order = np.lexsort((ids, sign * values[row, 0].numpy()))[:50]
            assert ranked.ids[row, 0].tolist() == ids[order].tolist()
            assert torch.equal(ranked.values[row, 0], values[row, 0, order])
        assert ranked.errors.isnan().all()


def test_standard_errors_come_with_their_scores() -> None:
    values, errors = torch.tensor([[[3.0, -1.0, 2.0, 0.5]]]), torch.tensor([[[0.3, 0.1, 0.2, 0.05]]])
    top = TopCollector(2).add(["c", "a", "d", "b"], values, errors).top()
    assert top.proponents.ids.tolist() == [[["c", "d"]]]
    assert torch.equal(top.proponents.errors, torch.tensor([[[0.3, 0.2]]]))
    assert top.opponents.ids.tolist() == [[["a", "b"]]]
    assert torch.equal(top.opponents.errors, torch.tensor([[[0.1, 0.05]]]))


@pytest.mark.parametrize("ids", [[5, -3, 2**62], ["b", "a", "\u00e9t\u00e9.png"]])
def test_the_strongest_scores_are_saved_with_ids_of_either_kind(ids: list[Any], tmp_path: Path) -> None:
    values = torch.tensor([[[3.0, -1.0, 2.0], [0.0, 0.0, 1.0]]])
    top = TopCollector(2).add(ids, values, values.abs()).top()
    saved = TopScores(*top, 2, 3, torch.tensor([40, 10]), 1 / 3, (0, 50), None, torch.ones(1, 4, 4))
    saved.save(tmp_path / "top.safetensors")
    found = TopScores.load(tmp_path / "top.safetensors")
    assert all(map(equal, found.top(2), saved.top(2)))
    assert found.proponents.ids.dtype == saved.proponents.ids.dtype
    assert (found.k, found.num_train, found.damping, found.interval) == (2, 3, 1 / 3, (0, 50))
    assert torch.equal(found.timesteps, saved.timesteps)
    assert found.region is not None
    assert torch.equal(found.region, torch.ones(1, 4, 4))
    first = (tmp_path / "top.safetensors").read_bytes()
    found.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == first


def test_blocks_of_scores_have_the_errors_of_all_scores() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    noise, norm, gains = random(3, 100), random(3, 100), (random(3, 2, 2), random(3, 2, 2))
    values = random(2, 2, 100)
    scores = Scores(values, torch.tensor([40, 10]), list(range(100)), 0.1, errors=ScoreErrors(noise, norm, *gains))
    collector = TopCollector(20)
    for begin in range(0, 100, 7):
        part = slice(begin, begin + 7)
        errors = ScoreErrors(noise[:, part], norm[:, part], *gains).of_scores()
        collector.add(scores.train_ids[part], values[..., part], errors)
    assert all(map(equal, collector.top(), scores.top(20)))
    standard = torch.take_along_dim(scores.standard_errors(), torch.from_numpy(scores.top(20).proponents.ids), -1)
    assert torch.equal(scores.top(20).proponents.errors, standard)


def test_what_cannot_be_ranked_is_refused_by_name() -> None:
    for k in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="k must be a positive integer"):
            TopCollector(k)  # type: ignore[arg-type]
    one = torch.ones(1, 1, 2)
    with pytest.raises(ValueError, match="there are no scores to rank"):
        TopCollector(1).top()
    with pytest.raises(ValueError, match=r"values must be \[num_queries, num_steps, n\] of the 3 ids, got \[1, 1, 2\]"):
        TopCollector(1).add([1, 2, 3], one)
    with pytest.raises(ValueError, match=r"errors must have the shape of values, \[1, 1, 2\], got \[1, 2\]"):
        TopCollector(1).add([1, 2], one, one[0])
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="values must be finite, got NaN or infinity for the image 'b'"):
            TopCollector(1).add(["a", "b"], torch.tensor([[[1.0, bad]]]))
    with pytest.raises(ValueError, match=r"of the queries and steps of earlier blocks, \[1, 1\], got \[2, 1\]"):
        TopCollector(1).add([1, 2], one).add([3], torch.ones(2, 1, 1))
    with pytest.raises(TypeError, match="ids must be of the kind of earlier blocks"):
        TopCollector(3).add([1, 2], one).add(["a", "b"], one)
    with pytest.raises(TypeError, match="ids must be all integers or all strings"):
        TopCollector(3).add([1, "a"], one)  # type: ignore[list-item]
    for odd in ([1.5, 2.0], np.array([1.5, 2.0])):
        with pytest.raises(TypeError, match=r"must be an integer or a string|ids must be integers or strings"):
            TopCollector(3).add(odd, one)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ids must come once in all blocks, got 2 twice"):
        TopCollector(3).add([1, 2], one).add([2, 3], one).top()


def test_parts_of_other_questions_are_not_merged() -> None:
    top = TopCollector(1).add([1, 2], torch.tensor([[[3.0, -1.0]]])).top()
    part = TopScores(*top, k=1, num_train=2, timesteps=torch.tensor([40]), damping=0.1)
    other = TopCollector(1).add([3], torch.tensor([[[2.0]]])).top()
    fits = TopScores(*other, k=1, num_train=1, timesteps=torch.tensor([40]), damping=0.1)
    assert TopScores.merge([part, fits]).top(1).proponents.ids.tolist() == [[[1]]]
    for changes, name in (
        ({"damping": 0.2}, "damping"),
        ({"timesteps": torch.tensor([50])}, "timesteps"),
        ({"interval": (0, 9)}, "interval"),
        ({"region": torch.ones(1, 2, 2)}, "region"),
        ({"k": 2}, "k"),
    ):
        with pytest.raises(ValueError, match=rf"parts\[1\] has another {name}"):
            TopScores.merge([part, replace(fits, **changes)])
    proponents, opponents = TopCollector(9).add([1, 2], torch.ones(1, 1, 2)).top()
    wide = replace(part, proponents=proponents, opponents=opponents, k=9)
    with pytest.raises(ValueError, match="ids must come once in all blocks, got 1 twice"):
        TopScores.merge([wide, wide])
    with pytest.raises(ValueError, match="parts must be one TopScores or more, got none"):
        TopScores.merge([])
    for k in (0, 2):
        with pytest.raises(ValueError, match=f"k must be between 1 and the 1 scores that were kept, got {k}"):
            part.top(k)
