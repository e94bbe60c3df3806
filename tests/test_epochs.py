"""minibert/engine/epochs.py: a cursor is all that the rest of a run hangs on."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import TINY, perturbed

from minibert.data import Examples
from minibert.data.batches import cut
from minibert.engine import assemble
from minibert.engine.dropout import dropout_for
from minibert.engine.epochs import Cursor, Plan, Watch, own_random_numbers, steps
from minibert.engine.machine import Machine
from minibert.engine.optimizer import Schedule
from minibert.errors import InputError
from minibert.model import BertClassifier
from minibert.seeds import derive

CPU = torch.device("cpu")
PLAN = Plan(examples=19, epochs=2, batch_size=2, accumulate=2, order=5, dropout=6)


def engine(name="fp32", accumulate=2):
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, TINY.vocab_size, n).astype(np.int32) for n in generator.integers(3, 12, 19)]
    data = Examples(ids, None, generator.integers(0, 5, 19), np.arange(19))
    torch.manual_seed(0)
    model = perturbed(BertClassifier(TINY, dropout=dropout_for(CPU)))
    return assemble(model, [data], Machine(name, "", CPU), Schedule(1e-3, 10, 2), accumulate=accumulate)


def go(one, plan, cursor, most=None):
    """Take steps from `cursor` on, `most` at most; the cursor behind the last, in a list."""

    def batches(chosen):
        return [one.network.batch(one.splits[0], part) for part in plan.batches(chosen)], len(chosen)

    return list(islice(steps(one, plan, cursor, batches), most))[-1:] or [cursor]


def test_an_epoch_is_all_examples_once_in_an_order_of_its_own():
    first, second = PLAN.rows(1), PLAN.rows(2)
    assert [len(rows) for rows in first] == [4, 4, 4, 4, 3]
    assert (PLAN.steps, PLAN.size) == (5, 4)
    assert sorted(i for rows in first for i in rows) == list(range(19))
    assert list(first) != list(second)
    assert list(first) == list(PLAN.rows(1))
    assert list(replace(PLAN, order=4).rows(1)) != list(first)
    assert list(replace(PLAN, dropout=4).rows(1)) == list(first)
    assert first[-1] == list(first)[4]
    with pytest.raises(IndexError):
        first[5]


@pytest.mark.parametrize("examples", [19, 4096, 100_003])
def test_the_order_is_that_of_runs_that_drew_it_in_64_bits(examples):
    plan = replace(PLAN, examples=examples)
    generator = torch.Generator().manual_seed(derive(plan.order, "order", 2))
    expected = torch.randperm(examples, generator=generator).tolist()
    assert [i for chosen in plan.rows(2) for i in chosen] == expected


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("examples", [1, 2, 12, 13, 14, 16, 19])
def test_no_forward_pass_is_smaller_than_the_least(examples, accumulate):
    plan = replace(PLAN, examples=examples, batch_size=3, accumulate=accumulate, least=2)
    rows = plan.rows(1)
    assert len(rows) == plan.steps
    assert sorted(i for chosen in rows for i in chosen) == list(range(examples))
    batches = [part for chosen in rows for part in plan.batches(chosen)]
    assert [i for part in batches for i in part] == [i for chosen in rows for i in chosen]
    assert {len(part) for part in batches} <= {2, 3, 4} or examples == 1
    assert list(replace(plan, least=1).rows(1)) == cut([i for chosen in rows for i in chosen], plan.size)


def test_every_step_has_random_numbers_of_its_own():
    places = [Cursor(epoch, step) for epoch in (1, 2) for step in range(5)]
    seeds = [PLAN.seed(place) for place in places]
    assert len(set(seeds)) == 10
    assert [replace(PLAN, order=1).seed(place) for place in places] == seeds
    assert set(seeds).isdisjoint(replace(PLAN, purpose="other ").seed(place) for place in places)
    assert set(seeds).isdisjoint(PLAN.seed(place, rank=1) for place in places)


@pytest.mark.parametrize(("name", "accumulate"), [("fp32", 2), ("bf16", 1), ("fp16", 2)])
def test_a_run_goes_on_from_any_step_to_the_same_bits(name, accumulate):
    plan = replace(PLAN, accumulate=accumulate, batch_size=4 // accumulate)
    whole = engine(name, accumulate)
    assert go(whole, plan, Cursor()) == [Cursor(1, 5)]
    for stop in (1, 3, 5):
        first = engine(name, accumulate)
        (cursor,) = go(first, plan, Cursor(), stop)
        state = {key: tensor.clone() for key, tensor in first.state_dict().items()}
        torch.manual_seed(99)  # what the caller draws is nothing to it
        second = engine(name, accumulate)
        second.load_state_dict(state)
        go(second, plan, cursor)
        for (key, a), b in zip(whole.state_dict().items(), second.state_dict().values()):
            assert torch.equal(a, b), (stop, key)


def test_the_callers_random_numbers_stay_what_they_were():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with own_random_numbers(CPU):
        go(engine(), PLAN, Cursor(), 1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def bad(monkeypatch):
    """An engine, and a function that takes steps of it: of each, whether its gradient is finite."""
    one = engine()

    def take(*steps, watch=None):
        for finite in steps:
            norm = torch.tensor(1.0 if finite else torch.inf, dtype=torch.float64)
            monkeypatch.setattr(one.state.optimizer, "norm", lambda gradients, norm=norm: norm)
            go(one, PLAN, Cursor(), 1)
            if watch:
                watch.look()

    return one, take


def test_gradients_that_no_step_can_use_end_a_run(bad):
    one, take = bad
    watch = Watch(one, lambda back: InputError(f"{back} back"))
    take(True, True, watch=watch)
    with pytest.raises(InputError, match="1 back"):
        take(False, watch=watch)
    one.state.scaler.enabled = True
    take(False, watch=watch)  # a smaller loss scale may help
    assert watch.read().skipped == 2
    one.state.scaler.scale.fill_(2**-25)
    with pytest.raises(InputError):
        take(False, watch=watch)


def test_patience_is_about_steps_in_a_row(bad):
    one, take = bad
    watch = Watch(one, lambda back: InputError(f"{back} back"), patience=2)
    take(False, False, True, False, False, watch=watch)
    assert watch.in_a_row == 2
    with pytest.raises(InputError, match="1 back"):
        take(False, watch=watch)


def test_a_device_that_is_read_now_and_then_is_judged_by_what_it_has_done_since(bad):
    one, take = bad
    watch = Watch(one, lambda back: InputError(f"{back} back"))
    watch.at_once = False
    take(True, False, True, watch=watch)
    with pytest.raises(InputError, match="3 back"):
        watch.read()
    watch = Watch(one, lambda back: InputError(f"{back} back"), patience=2)  # what was skipped before is not counted
    watch.at_once = False
    for some in [(False, True, False, False), (False, False)]:
        take(*some, watch=watch)
        watch.read()
    assert watch.in_a_row == 2
    with pytest.raises(InputError):
        take(False, False, watch=watch), watch.read()


def test_a_loss_that_is_not_finite_is_mended_by_no_loss_scale(bad):
    one, take = bad
    one.state.scaler.enabled = True
    watch = Watch(one, lambda back: InputError(f"{back} back"))
    take(False)
    watch.look(expected=one.state.sums.read().count)
    take(False)
    with pytest.raises(InputError):
        watch.look(expected=one.state.sums.read().count + 1)
