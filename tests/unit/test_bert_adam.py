"""Adam without weight decay on biases and norms."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fairseq_transnorm.optim.bert_adam import BertAdam, BertAdamConfig


def optimiser(model, decay=0.1, lr=0.01):
    cfg = OmegaConf.structured(BertAdamConfig(weight_decay=decay, adam_betas="(0.9, 0.98)"))
    OmegaConf.set_struct(cfg, False)
    cfg.lr = [lr]
    return BertAdam(cfg, model.parameters())


def test_matrices_decay_and_biases_and_norms_do_not():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    nn.init.ones_(model[0].bias)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = copy.deepcopy(model.state_dict())
    optimiser(model).step()
    for name, value in model.state_dict().items():
        factor = 1 - 0.01 * 0.1 if name == "0.weight" else 1.0
        torch.testing.assert_close(value, factor * before[name])


def test_a_step_is_adams():
    model = nn.Linear(1, 1)
    start = model.bias.detach().clone()
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    optimiser(model).step()
    # the first step has the size of the learning rate, whatever the gradient
    assert (start - model.bias).item() == pytest.approx(0.01, rel=1e-5)


def test_a_resumed_state_keeps_its_groups():
    model = nn.Linear(2, 2)
    saved = optimiser(model).state_dict()
    resumed = optimiser(model)
    resumed.load_state_dict(saved, {"weight_decay": 0.5})
    assert [group["weight_decay"] for group in resumed.param_groups] == [0.5, 0.0]


def test_flattened_parameters_are_refused_by_fairseq():
    assert not optimiser(nn.Linear(2, 2)).supports_flat_params
