"""Learning rates: hold_linear, and which of fairseq's own schedules and optimisers are the experiments'."""

from math import sqrt

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim import build_optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler

from fairseq_transnorm import USER_DIR

S, LR = 10, 0.02


def built(*flags):
    """Optimiser and schedule as fairseq-train makes them from a command line."""
    argv = ["data", "--user-dir", USER_DIR, "--arch", "transformer_lm", "--task", "normgrowth_lm", "--lr", str(LR)]
    parser = options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, [*argv, *map(str, flags)]))
    optimizer = build_optimizer(cfg.optimizer, [torch.nn.Parameter(torch.full((2, 2), 3.0))])
    return optimizer, build_lr_scheduler(cfg.lr_scheduler, optimizer)


def rates(schedule, *updates):
    """The learning rate of the update that comes after so many others."""
    return [schedule.step_update(count) for count in updates]


@pytest.mark.parametrize("total", [["--total-num-update", 110], ["--max-update", 110]])
def test_hold_linear_holds_and_falls_to_a_tenth(total):
    optimizer, schedule = built("--optimizer", "sgd", "--lr-scheduler", "hold_linear", "--hold-updates", S, *total)
    assert optimizer.get_lr() == LR
    assert rates(schedule, 0, S, 60, 110, 10**6) == pytest.approx([LR, LR, LR * 0.55, LR * 0.1, 0])
    assert optimizer.get_lr() == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hold-updates", 10, "--max-update", 10], "--hold-updates 10 and --total-num-update 10"),
        (["--hold-updates", 10], "--total-num-update 0 .without it, --max-update"),
        (["--lr", "0.1,0.2", "--max-update", 5000], "one rate"),
    ],
)
def test_hold_linear_refuses_what_it_cannot_mean(flags, message):
    with pytest.raises(ValueError, match=message):
        built("--optimizer", "sgd", "--lr-scheduler", "hold_linear", *flags)


def test_inverse_sqrt_is_the_original_s_schedule_sqrt():
    _, schedule = built(
        *["--optimizer", "adam", "--lr-scheduler", "inverse_sqrt"], "--warmup-updates", S, "--warmup-init-lr", LR
    )
    updates = (0, 1, S, S + 1, 50)
    assert rates(schedule, *updates) == pytest.approx([LR if it <= S else LR * sqrt(S) / sqrt(it) for it in updates])


def test_adafactor_scales_its_steps_by_the_parameter():
    """The step of T5: the rate times the root mean square of the parameter, in the first update."""
    optimizer, _ = built("--optimizer", "adafactor", "--scale-parameter")
    (parameter,) = optimizer.params
    parameter.grad = torch.full((2, 2), 0.7)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((2, 2), 3.0 - LR * 3.0))
