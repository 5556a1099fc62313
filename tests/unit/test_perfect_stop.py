"""What the epochs of runs decide, seen in fairseq's own loop: rates, the end of training, restored weights."""

import copy

import pytest
import torch

from fairseq_transnorm.tasks.perfect_stop import PerfectStopMixin
from tests.rasp_runs import WORSE, epochs, last, same_epochs, train
from tests.unit.test_schedules import LR, built

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's loader of data


def schedule_of(*flags):
    return built("--optimizer", "adam", "--lr-scheduler", "rasp_exponential", *flags)


def walked(schedule):
    """The rate at the start of each of four epochs, and inside of it."""
    rates = []
    for epoch in range(1, 5):
        schedule.step_begin_epoch(epoch)
        rates.append([schedule.step_update(7 * epoch + update) for update in range(3)])
        schedule.step(epoch, 1.0)
    return rates


def test_the_rate_of_an_epoch_is_that_of_fairseq_s_fixed_schedule():
    _, schedule = schedule_of("--gamma", 0.7)
    _, fixed = built("--optimizer", "adam", "--lr-scheduler", "fixed", "--force-anneal", 2, "--lr-shrink", 0.7)
    rates = walked(schedule)
    assert rates == walked(fixed) == [[pytest.approx(LR * 0.7**epoch)] * 3 for epoch in range(4)]
    _, again = schedule_of("--gamma", 0.7)  # a run that goes on in the middle of epoch 3
    again.load_state_dict(schedule.state_dict())
    again.step_begin_epoch(3)
    assert again.step_update(22) == rates[2][0]


def test_the_schedule_ends_training_after_perfect_epochs_in_a_row():
    optimizer, schedule = schedule_of("--gamma", 1, "--perfect-acc-cut", 2)
    for perfect, ended in ((True, False), (False, False), (True, False), (True, True)):
        schedule.count_epoch(perfect)
        assert (schedule.step_update(1) == -1) is ended is schedule.finished
    assert optimizer.get_lr() == -1
    _, never = schedule_of("--perfect-acc-cut", 0)
    never.load_state_dict(schedule.state_dict())
    assert (never.perfect_epochs, never.finished) == (2, False)
    _, low = schedule_of("--perfect-acc-cut", 1, "--stop-min-lr", -5)
    low.count_epoch(True)
    assert low.step_update(1) == -5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gamma", 0], "--gamma 0.0: above 0"),
        (["--gamma", 1.01], "--gamma 1.01: .*at most 1"),
        (["--lr", "0.1,0.2"], "one rate"),
    ],
)
def test_the_schedule_refuses_what_it_cannot_mean(flags, message):
    with pytest.raises(ValueError, match=f"rasp_exponential: .*{message}|rasp_exponential: {message}"):
        schedule_of(*flags)


@pytest.fixture
def restored(monkeypatch):
    """What the trainer has after each look at patience: epoch -> weights, state of the optimizer, rate."""
    seen = {}
    look = PerfectStopMixin._restore_if_due

    def spy(task):
        look(task)
        trainer = task._PerfectStopMixin__trainer
        weights = copy.deepcopy(trainer.get_model().state_dict())
        seen[task._running_epoch] = weights, len(trainer.optimizer.optimizer.state), trainer.get_lr()

    monkeypatch.setattr(PerfectStopMixin, "_restore_if_due", spy)
    return seen


def test_restored_epochs_begin_with_the_best_weights_and_a_fresh_optimizer(tmp_path, restored):
    """Epoch 1 stays the best: after epochs 2 and 3, and again after 4 and 5, patience is over."""
    train(tmp_path, *WORSE, "--batch-size", 8, "--max-epoch", 6)
    best = torch.load(tmp_path / "checkpoint_best.pt", weights_only=True)["model"]
    at_best = [
        epoch for epoch, (weights, _, _) in restored.items() if all(torch.equal(weights[k], best[k]) for k in best)
    ]
    assert at_best == [2, 4, 6]
    assert {epoch: not states for epoch, (_, states, _) in restored.items()} == {
        epoch: epoch in (1, 4, 6) for epoch in range(1, 7)
    }
    assert [rate for _, _, rate in restored.values()] == pytest.approx([0.003 * 0.9**epoch for epoch in range(6)])
    assert [record["restored"] for record in epochs(tmp_path)] == [epoch in (4, 6) for epoch in range(1, 7)]
    assert [record["best"] for record in epochs(tmp_path)] == [True] + [False] * 5


CUT = [*WORSE, "--batch-size", 8, "--save-interval-updates", 17]  # a validation in the middle of epoch 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, *CUT, "--max-epoch", 6)
    return folder


@pytest.mark.parametrize("cut", [["--max-epoch", 3], ["--max-epoch", 4], ["--max-update", 17]])
def test_a_run_that_goes_on_restores_as_if_it_had_not_been_stopped(tmp_path, whole, cut):
    """After epoch 3, when patience is over; after the restored epoch 4; and in the middle of that."""
    train(tmp_path, *CUT, *cut)
    train(tmp_path, *CUT, "--max-epoch", 6)
    same_epochs(tmp_path, whole, rel=1e-6)
    ours, other = last(tmp_path), last(whole)
    assert all(torch.equal(ours[name], other[name]) for name in other)


def test_ties_replace_the_best_checkpoint_and_do_not_renew_patience(tmp_path):
    flags = ["--best-checkpoint-metric", "accuracy", "--lr", 1e-12, "--perfect-acc-cut", 1]
    # validations within an epoch are none at its end
    train(tmp_path, *WORSE, *flags, "--batch-size", 8, "--max-epoch", 6, "--validate-interval-updates", 2)
    assert [record["best"] for record in epochs(tmp_path)] == [True] * 6
    assert [record["restored"] for record in epochs(tmp_path)] == [epoch in (4, 6) for epoch in range(1, 7)]


def test_micro_batches_train_as_their_batch_does(tmp_path):
    """Batches of 8 and of twice 4, in order, and at the end of the epoch one of 3."""
    flags = ["--train-size", 35, "--curriculum", 9, "--max-epoch", 3, "--optimizer", "sgd", "--lr", 0.1]
    train(tmp_path / "8", *flags, "--batch-size", 8)
    train(tmp_path / "4", *flags, "--batch-size", 4, "--update-freq", 2)
    same_epochs(tmp_path / "4", tmp_path / "8", rel=1e-5)
    ours, other = last(tmp_path / "4"), last(tmp_path / "8")
    for name, weight in other.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-6)
    means = []
    for folder in (tmp_path / "8", tmp_path / "4"):
        means.append([record["train"]["accuracy_batchmean"] for record in epochs(folder)])
    assert means[0] != pytest.approx(means[1]), "the mean over batches is one over micro-batches"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reset-patience", -1], "--reset-patience -1: 0 .never. or more"),
        (["--reset-patience", 2, "--no-save"], "--reset-patience 2 needs checkpoint_best.pt, which --no-save"),
        (["--reset-patience", 2, "--disable-validation"], "which --disable-validation leaves out"),
    ],
)
def test_patience_without_a_best_checkpoint_is_refused(tmp_path, flags, message):
    with pytest.raises(ValueError, match=f"rasp_lang: .*{message}"):
        train(tmp_path, *flags, "--batch-size", 8, "--max-epoch", 1)


def test_a_run_does_not_go_on_without_the_best_weights(tmp_path):
    train(tmp_path, *WORSE, "--batch-size", 8, "--max-epoch", 1)
    (tmp_path / "checkpoint_best.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"--reset-patience 1: no .*checkpoint_best.pt.*epoch 1.*put the file"):
        train(tmp_path, *WORSE, "--batch-size", 8, "--max-epoch", 2)
    train(tmp_path, *WORSE, "--batch-size", 8, "--max-epoch", 2, "--reset-patience", 0)
