"""LRPE: values by hand, initial angles, what is trained, saved and kept in float32."""

import copy
import math

import pytest
import torch

from fairseq_transnorm.modules.attention import LinearAttention
from fairseq_transnorm.modules.lrpe import LRPE

KINDS = ["1d3", "1d1", "1_3", "1_1"]
LEARNED = ["1d3", "1d1"]
REFLECTED = ["1d3", "1_3"]


@pytest.fixture(autouse=True)
def _same_reflections():
    torch.manual_seed(0)


def encode(lrpe: LRPE, rows: list[list[float]], positions: list[int]) -> torch.Tensor:
    x = torch.tensor(rows, dtype=torch.float64)[None, None]
    return lrpe(x, torch.tensor(positions))[0, 0]


def test_the_reflection_by_hand():
    lrpe = LRPE(2, "1_3").double()
    lrpe.v.data = torch.tensor([0.6, 0.8], dtype=torch.float64)
    # z . v = 2.2: (1, 2) - 4.4 (0.6, 0.8); nothing turns at position 0
    expected = torch.tensor([[-1.64, -1.52]], dtype=torch.float64)
    torch.testing.assert_close(encode(lrpe, [[1, 2]], [0]), expected)


def test_the_rotation_by_hand():
    # angle 1 for the first pair, 10000^(-2/4) = 0.01 for the second: at position 50 they are 50 and 0.5
    got = encode(LRPE(4, "1_1"), [[1, 0, 1, 0], [0, 1, 0, 1], [2, 0, 0, 3]], [50, 50, 0])
    expected = [
        [math.cos(50), math.sin(50), math.cos(0.5), math.sin(0.5)],
        [-math.sin(50), math.cos(50), -math.sin(0.5), math.cos(0.5)],
        [2, 0, 0, 3],
    ]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_reflection_comes_before_the_rotation():
    lrpe = LRPE(2, "1d3").double()
    lrpe.v.data = torch.tensor([1.0, 0.0], dtype=torch.float64)  # turns the sign of the first channel
    lrpe.theta.data = torch.tensor([math.pi / 2], dtype=torch.float64)
    # (1, 2) -> (-1, 2) -> a quarter turn -> (-2, -1)
    torch.testing.assert_close(encode(lrpe, [[1, 2]], [1]), torch.tensor([[-2.0, -1.0]], dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [2, 6, 64])
def test_initial_angles(kind, width):
    expected = [10000 ** (-2 * k / width) for k in range(width // 2)]
    torch.testing.assert_close(LRPE(width, kind).theta.detach(), torch.tensor(expected))


@pytest.mark.parametrize(("kind", "divisor"), [("1d3", 5), ("1d1", 5), ("1_3", 4), ("1_1", 4)])
def test_initial_angles_of_an_odd_width(kind, divisor):
    # learned angles count all channels, fixed ones the rotated channels
    theta = LRPE(5, kind).theta.detach()
    torch.testing.assert_close(theta, torch.tensor([1, 10000 ** (-2 / divisor)]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_last_channel_is_not_rotated(kind):
    lrpe = LRPE(5, kind).double()
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    turned, still = encode(lrpe, rows, [3, 9, 70]), encode(lrpe, rows, [0, 0, 0])
    torch.testing.assert_close(turned[:, 4], still[:, 4])
    if lrpe.v is None:
        assert turned[:, 4].tolist() == [row[4] for row in rows]
    assert not torch.isclose(turned[:, :4], still[:, :4]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_and_what_is_saved(kind):
    lrpe = LRPE(6, kind)
    trained = {name for name, p in lrpe.named_parameters() if p.requires_grad}
    assert trained == ({"theta"} if kind in LEARNED else set())
    saved = {"theta"} & ({"theta"} if kind in LEARNED else set()) | ({"v"} if kind in REFLECTED else set())
    assert set(lrpe.state_dict()) == saved
    if kind in REFLECTED:
        assert isinstance(lrpe.v, torch.nn.Parameter)
        assert lrpe.v.shape == (6,)
        torch.testing.assert_close(lrpe.v.norm(), torch.tensor(1.0))
        assert not torch.equal(lrpe.v, LRPE(6, kind).v), "drawn anew for every layer"
    assert lrpe.theta.shape == (3,)


def test_v_does_not_change_in_training_but_theta_does():
    lrpe = LRPE(4)
    before = copy.deepcopy(lrpe.state_dict())
    optimizer = torch.optim.SGD(lrpe.parameters(), lr=0.1, weight_decay=0.1)
    x = torch.randn(1, 1, 5, 4, generator=torch.Generator().manual_seed(0))
    (lrpe(x, torch.arange(5)) * torch.arange(4)).sum().backward()
    optimizer.step()
    assert torch.equal(lrpe.v, before["v"])
    assert not torch.isclose(lrpe.theta, before["theta"]).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("narrow", [torch.nn.Module.half, torch.nn.Module.bfloat16, lambda m: m.to(torch.float16)])
def test_angles_and_reflection_stay_in_float32_in_half_precision(kind, narrow):
    attn = LinearAttention(24, 2, None, lrpe=kind)
    with torch.no_grad():
        attn.lrpe.theta += 1e-4  # a value that half precision cannot hold
    theta, v = attn.lrpe.theta.clone(), None if attn.lrpe.v is None else attn.lrpe.v.clone()
    narrow(attn)
    assert attn.qkv.weight.dtype in (torch.float16, torch.bfloat16)
    for module in (attn, attn.float()):
        assert module.lrpe.theta.dtype == torch.float32
        assert torch.equal(module.lrpe.theta, theta)
        assert v is None or (module.lrpe.v.dtype == torch.float32 and torch.equal(module.lrpe.v, v))


def test_going_to_half_precision_after_a_backward_pass_leaves_gradients_that_can_be_used():
    lrpe = LRPE(4)
    lrpe(torch.ones(1, 1, 3, 4), torch.arange(3)).sum().backward()
    lrpe.half()
    assert lrpe.theta.grad.dtype == lrpe.theta.dtype
    torch.optim.Adam(lrpe.parameters()).step()


def test_double_precision_is_followed():
    lrpe = LRPE(4).double()
    assert lrpe.theta.dtype == lrpe.v.dtype == torch.float64
    assert lrpe(torch.ones(1, 1, 3, 4, dtype=torch.float64), torch.arange(3)).dtype == torch.float64


def test_a_half_precision_model_saves_and_loads_exact_angles():
    source, target = LRPE(6).half(), LRPE(6)
    assert all(x.dtype == torch.float32 for x in source.state_dict().values())
    target.load_state_dict(source.state_dict())
    assert torch.equal(source.theta, target.theta)
    assert torch.equal(source.v, target.v)


def test_far_positions_are_right_in_float32():
    lrpe = LRPE(64)
    x = torch.randn(1, 1, 8, 64, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(16377, 16385)
    far = lrpe(x, positions)
    assert far.dtype == torch.float32
    exact = copy.deepcopy(lrpe).double()(x.double(), positions)
    # n theta is rounded at 2^-24 of 16384, which is 1e-3; half precision would be off by whole turns
    torch.testing.assert_close(far.double(), exact, rtol=0, atol=5e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [4, 5])
def test_heads_may_lie_apart_in_memory(kind, width):
    lrpe = LRPE(width, kind)
    x = torch.randn(2, 3, 4, width, generator=torch.Generator().manual_seed(0))
    expected = lrpe(x, torch.arange(4))
    layouts = {
        "time first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "slice of wider rows": torch.cat([x, x], -1)[..., width:],
    }
    for layout, same in layouts.items():
        torch.testing.assert_close(lrpe(same, torch.arange(4)), expected, msg=lambda m, layout=layout: f"{layout}: {m}")


def test_bad_kind_and_width_are_refused():
    with pytest.raises(ValueError, match=r"unknown LRPE kind '1d2'; did you mean '1d\d'\? known: 1d3"):
        LRPE(4, "1d2")
    with pytest.raises(ValueError, match="head width 1 has no channel pair"):
        LRPE(1)
