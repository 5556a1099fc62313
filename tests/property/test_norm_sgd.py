"""NormSGD as fairseq builds it, against a loop that reads like its definition."""

import pytest
import torch
from fairseq.optim import build_optimizer
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fairseq_transnorm.optim.norm_sgd import NormSGDConfig


def built(parameters, **options):
    cfg = OmegaConf.structured(NormSGDConfig(_name="norm_sgd", lr=[0.1], **options))
    return build_optimizer(cfg, parameters)


def reference(parameters, gradients, lr, momentum, dampening, nesterov, weight_decay):
    """The parameters after one step for each list of gradients, tensor by tensor and step by step."""
    result = []
    for index, parameter in enumerate(parameters):
        p, buffer = parameter.clone(), None
        for step in gradients:
            g = step[index]
            d = g / g.norm() if g.norm() > 0 else torch.zeros_like(g)
            d = d + weight_decay * p
            if momentum:
                buffer = d if buffer is None else momentum * buffer + (1 - dampening) * d
                d = d + momentum * buffer if nesterov else buffer
            p = p - lr * d
        result.append(p)
    return result


@given(
    seed=st.integers(0, 99),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    dampening=st.sampled_from([0.0, 0.3]),
    nesterov=st.booleans(),
    weight_decay=st.sampled_from([0.0, 0.1]),
    zero=st.integers(0, 3),
    scale=st.sampled_from([1e-20, 1.0, 1e10]),
)
def test_steps_are_those_of_the_definition(seed, momentum, dampening, nesterov, weight_decay, zero, scale):
    options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "weight_decay": weight_decay}
    if nesterov and (not momentum or dampening):
        with pytest.raises(ValueError, match="--nesterov needs --momentum above 0 and --dampening 0"):
            built([torch.nn.Parameter(torch.ones(1))], **options)
        return
    torch.manual_seed(seed)
    shapes = [(3, 2), (4,), (1,)]
    start = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    gradients = [[scale * torch.randn(shape, dtype=torch.float64) for shape in shapes] for _ in range(3)]
    for step in gradients[:zero]:
        step[0].zero_()
    expected = reference(start, gradients, 0.1, **options)
    parameters = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = built(parameters, **options)
    for number, step in enumerate(gradients):
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        if number == 1:  # a run that goes on from here
            state = optimizer.state_dict()
            optimizer = built(parameters, **options)
            optimizer.load_state_dict(state)
    for parameter, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-9, atol=1e-12)


def test_a_parameter_without_a_gradient_stays():
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    optimizer = built(parameters, weight_decay=0.5)
    parameters[0].grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert parameters[0].tolist() == pytest.approx([1 - 0.1 * (0.6 + 0.5), 1 - 0.1 * (0.8 + 0.5)])
    assert parameters[1].tolist() == [1, 1]
    assert not optimizer.supports_flat_params


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1.0, 1e20, 1e37])
def test_a_step_has_length_one_however_small_or_large_the_gradient(size):
    parameter = torch.nn.Parameter(torch.zeros(100))
    optimizer = built([parameter])
    parameter.grad = size * torch.ones(100)
    optimizer.step()
    # the smallest are rounded to few bits
    torch.testing.assert_close(parameter.detach(), torch.full((100,), -0.01), rtol=1e-3, atol=0)
