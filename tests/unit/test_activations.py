"""Activations: values at -1, 0 and 2 computed by hand, and their names."""

import pytest
import torch

from fairseq_transnorm.modules.activations import ACTIVATIONS, get_activation

VALUES = {
    "elu": [-0.6321206, 0, 2],  # 1/e - 1
    "1+elu": [0.3678794, 1, 3],
    "2+elu": [1.3678794, 2, 4],
    "relu": [0, 0, 2],
    "squared_relu": [0, 0, 4],
    "silu": [-0.2689414, 0, 1.7615942],  # -1 / (1 + e), 2 / (1 + e^-2)
    "swish": [-0.2689414, 0, 1.7615942],
    "gelu": [-0.1586553, 0, 1.9544997],  # x times the normal distribution function: exact, not the tanh form
    "exp": [0.3678794, 1, 7.3890561],
    "identity": [-1, 0, 2],
    "leaky_relu": [-0.01, 0, 2],
    "sigmoid": [0.2689414, 0.5, 0.8807971],
    "sine": [-0.8414710, 0, 0.9092974],
    "tanh": [-0.7615942, 0, 0.9640276],
}


def test_every_name_has_its_values_here():
    assert set(ACTIVATIONS) == set(VALUES)


@pytest.mark.parametrize("name", VALUES)
def test_values_by_hand(name):
    x = torch.tensor([-1.0, 0, 2])
    torch.testing.assert_close(get_activation(name)(x), torch.tensor(VALUES[name], dtype=torch.float32))
    assert x.tolist() == [-1, 0, 2], "the input was changed in place"


@pytest.mark.parametrize("name", VALUES)
def test_each_number_is_mapped_alone(name):
    # in particular exp: a maximum subtracted from each key would change the keys' relative weights
    x = torch.tensor([[-1.0, 0, 2], [0.5, 5, -3]])
    act = get_activation(name)
    torch.testing.assert_close(act(x), torch.stack([torch.stack([act(z) for z in row]) for row in x]))


def test_one_plus_elu_is_never_negative():
    assert (get_activation("1+elu")(torch.linspace(-200, 200, 999)) >= 0).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swihs", r"unknown activation 'swihs'; did you mean 'swish'\?.*known: elu, .*sine"),
        ("", r"unknown activation ''; known: elu"),
        ("relu2", r"unknown activation 'relu2'"),
        ("1+relu", r"unknown activation '1\+relu'"),
    ],
)
def test_unknown_names_are_refused(name, message):
    # the original took any unknown name for the identity
    with pytest.raises(ValueError, match=message):
        get_activation(name)
