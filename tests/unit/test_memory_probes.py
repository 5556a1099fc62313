"""Memory-recall probes: perfect memories recall all, zeros the first candidate, and loops over their formulas agree."""

import math
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fairseq_transnorm.data.bigram_statistics import count_file
from fairseq_transnorm.data.trigger_dataset import TriggerDataset
from fairseq_transnorm.data.trigger_sequences import VectorisedSampler
from fairseq_transnorm.data.trigger_settings import TriggerSettings, fixed_triggers
from fairseq_transnorm.measure.copying import in_context_accuracy
from fairseq_transnorm.measure.memory_probes import (
    LayerMemories,
    Memories,
    ff1_loss,
    memories_of,
    output_scores,
    position_key_scores,
    token_key_scores,
    weight_probes,
    wk0_acc,
    wk1_acc,
    wo1_acc,
)
from fairseq_transnorm.models.birth.basic import InductionHeadBasic
from fairseq_transnorm.models.birth.config import InductionHeadBasicConfig
from tests.birth_reference import T, V, build, feed_forward
from tests.helpers import ROOT

TRIGGERS = [4, 1, 5]
UNIFORM = torch.full((V, V), 1 / V, dtype=torch.float64)
NONE = {"wo1_acc": None, "wk1_acc": None, "wk0_acc": None, "wk0_64_acc": None, "ff1_loss": None}


@pytest.fixture(scope="module")
def corpus():
    return count_file(ROOT / "tests/data/lighthouse.txt")


def untrained(statistics, dim, length):
    cfg = OmegaConf.structured(InductionHeadBasicConfig(ihead_dim=dim, tokens_per_sample=length))
    torch.manual_seed(0)
    return InductionHeadBasic.build_model(cfg, SimpleNamespace(target_dictionary=range(len(statistics.vocab))))


@torch.no_grad()
def remember(model, triggers):
    """Give a model the memories of the mechanism that the experiments are about, as sums of outer products."""
    first, second = model.layers
    tokens, positions = model.embed_tokens.weight, model.positions
    second.wo.weight.copy_(model.output.weight.T @ second.wv(tokens))
    first.wk.weight.copy_(0.1 * positions[1:].T @ positions[:-1])
    second.wk.weight.copy_(0.1 * tokens[triggers].T @ first.wo(first.wv(tokens[triggers])))


@pytest.mark.parametrize(("width", "least"), [(4, 0.9), (7, 0.95)], ids=["4V", "7V"])
def test_perfect_memories_recall_everything_and_copy_without_training(corpus, width, least):
    length, size = 128, len(corpus.vocab)
    settings = TriggerSettings(num_triggers=5, length=length, fixed=True)
    triggers, model = fixed_triggers(corpus, settings), untrained(corpus, width * size, length)
    remember(model, triggers)
    probes = weight_probes(memories_of(model), triggers, torch.from_numpy(corpus.bigram))
    assert probes == {**NONE, "wo1_acc": 1.0, "wk1_acc": 1.0, "wk0_acc": 1.0, "wk0_64_acc": 1.0}
    data = TriggerDataset(VectorisedSampler(corpus, settings), "valid", 32, 42)
    batches = [data.collater(data.__getitems__(range(start, start + 16))) for start in (0, 16)]
    assert in_context_accuracy(model, batches) >= least


@pytest.mark.parametrize("triggers", [TRIGGERS, None], ids=["fixed", "random"])
def test_zeros_recall_the_first_candidate_alone(triggers):
    model = build(final_ffn=True)
    with torch.no_grad():
        for layer in model.layers:
            for linear in (layer.wk, layer.wo, layer.ffn):
                if linear is not None:
                    linear.weight.zero_()
    probes = weight_probes(memories_of(model), triggers, UNIFORM, cutoff=3)
    # rows t = 1 .. n-1 compete over s = 0 .. n-2: the first of them is right for t = 1
    expected = {"wo1_acc": 1 / V, "wk1_acc": 1 / len(triggers or range(V)), "wk0_acc": 1 / (T - 1), "wk0_3_acc": 1 / 2}
    assert probes == {**expected, "ff1_loss": pytest.approx(0.0, abs=1e-15)}


def test_values_by_hand():
    """Embeddings, outputs and positions are axes, so that scores are the entries of the matrices."""
    eye = torch.eye(3, dtype=torch.float64)
    output = torch.tensor([[3.0, 0, 0], [2, 1, 0], [0, 0, 5]], dtype=torch.float64)  # g(v, u) is output[u, v]
    key = torch.tensor([[1.0, 1, 1], [0, 2, 1], [0, 3, 2]], dtype=torch.float64)  # g(v, u) is key[v, u]
    first = LayerMemories(None, key, eye, None, None)
    memories = Memories(eye, eye, eye, [first, LayerMemories(None, key, None, output, lambda x: 2 * x)])
    assert torch.equal(output_scores(memories), output.T)
    assert torch.equal(token_key_scores(memories), key)
    assert torch.equal(token_key_scores(memories, [2, 0]), torch.tensor([[2.0, 0], [1, 1]], dtype=torch.float64))
    assert torch.equal(position_key_scores(memories), key)
    assert torch.equal(position_key_scores(memories, 2), key[:2, :2])
    assert wo1_acc(memories) == 1.0
    assert wk1_acc(memories, None) == 2 / 3  # of the third, 3 at the second; of the first, three are equal
    assert wk1_acc(memories, [2, 0]) == 1 / 2  # of token 0, the first candidate, 2, is as large
    assert wk1_acc(memories, [2]) == 1.0
    assert wk0_acc(memories) == 1 / 2  # at t = 1, (0, 2) has its largest at s = 1; at t = 2, so has (0, 3)
    assert wk0_acc(memories, 2) == 1.0  # one candidate


def test_the_previous_position_is_the_right_one():
    eye = torch.eye(4, dtype=torch.float64)
    shift = torch.zeros(4, 4, dtype=torch.float64)
    shift[[1, 2, 3], [0, 1, 2]] = 1
    later = shift.clone()
    later[1, 2] = 9  # no mask: a later position may win
    layers = [LayerMemories(None, matrix, None, None, None) for matrix in (shift, later)]
    assert wk0_acc(Memories(eye, eye, eye, [layers[0]] * 2)) == 1.0
    assert wk0_acc(Memories(eye, eye, eye, [layers[1]] * 2)) == 2 / 3


def test_the_feed_forward_map_is_compared_with_the_bigrams_in_nats():
    eye = torch.eye(3, dtype=torch.float64)
    bigram = torch.tensor([[0.5, 0.5, 0], [0.25, 0.25, 0.5], [1, 0, 0]], dtype=torch.float64)
    logs = torch.where(bigram > 0, bigram.log(), -1e9)
    nothing = LayerMemories(None, None, None, None, None)

    def model(feed_forward):
        return Memories(eye, None, eye, [nothing, LayerMemories(None, None, None, None, feed_forward)])

    exact, none = model(lambda x: x @ logs), model(lambda x: 0 * x)
    assert ff1_loss(exact, None, bigram) == pytest.approx(0.0, abs=1e-15)
    entropies = [math.log(2), 1.5 * math.log(2), 0.0]
    assert ff1_loss(none, None, bigram) == pytest.approx(math.log(3) - sum(entropies) / 3, rel=1e-14)
    assert ff1_loss(none, [2], bigram) == pytest.approx(math.log(3) - sum(entropies[:2]) / 2, rel=1e-14)
    assert ff1_loss(none, [], bigram) == ff1_loss(none, None, bigram)
    assert ff1_loss(none, [0, 1, 2], bigram) is None, "every token is a trigger"
    assert ff1_loss(model(None), None, bigram) is None


MODELS = [
    ("ihead_basic", {}),
    ("ihead_basic", {"tie_output": True, "final_ffn": True, "mlp_final_ffn": True}),
    ("ihead_full", {}),
    ("ihead_full", {"ihead_heads": 4, "ihead_layers": 3, "post_norm": True}),
    ("ihead_full", {"no_wv": True, "linear_ffn": True}),
    ("ihead_full", {"no_wo": True, "no_wv": True, "no_ffn": True}),
    ("ihead_full", {"sin_cos": True, "tie_output": True}),
]


@pytest.mark.parametrize(("name", "options"), MODELS, ids=str)
def test_loops_over_tokens_positions_and_heads_agree(name, options):
    """Each head by itself, its part of the matrices; their scores add up."""
    model = build(name, **options).float()
    heads = model.layers[0].num_heads
    bigram = torch.rand(V, V, dtype=torch.float64).softmax(-1)
    slow = {
        "wo1_acc": fmean([_best(_speaks(model, v)) == v for v in range(V)]),
        "wk1_acc": fmean([_best(_fits(model, heads, v)) == i for i, v in enumerate(TRIGGERS)]),
        "wk0_acc": fmean([_best(_follows(model, heads, t, T - 1)) == t - 1 for t in range(1, T)]),
        "wk0_4_acc": fmean([_best(_follows(model, heads, t, 3)) == t - 1 for t in range(1, 4)]),
    }
    fast = weight_probes(memories_of(model), TRIGGERS, bigram, cutoff=4)
    divergence = fast.pop("ff1_loss")
    assert fast == slow
    no_map = model.layers[1].ffn is None
    assert divergence == (None if no_map else pytest.approx(_divergence(model, bigram), rel=1e-12))


def _times(linear, x):
    return x if linear is None else linear.weight.double() @ x


def _embedded(model, v):
    return model.embed_tokens.weight[v].double()


def _best(scores):
    return max(range(len(scores)), key=scores.__getitem__)


def _speaks(model, v):
    layer = model.layers[1]
    u = _times(layer.wo, _times(layer.wv, _embedded(model, v)))
    return [float(row.double() @ u) for row in model.output_matrix()]


def _by_head(query, key, heads):
    return sum(float(a @ b) for a, b in zip(query.chunk(heads), key.chunk(heads), strict=True))


def _fits(model, heads, v):
    first, second = model.layers[:2]
    query = _times(second.wq, _embedded(model, v))
    written = [_times(first.wo, _times(first.wv, _embedded(model, u))) for u in TRIGGERS]
    return [_by_head(query, _times(second.wk, h), heads) for h in written]


def _follows(model, heads, t, count):
    layer, p = model.layers[0], model.position_vectors().double()
    return [_by_head(_times(layer.wq, p[t]), _times(layer.wk, p[s]), heads) for s in range(count)]


def _divergence(model, bigram):
    state, total = {name: tensor.double() for name, tensor in model.state_dict().items()}, 0.0
    kept = [v for v in range(V) if v not in TRIGGERS]
    for v in kept:
        mapped = feed_forward(state, 1, _embedded(model, v))
        scores = [float(row.double() @ mapped) for row in model.output_matrix()]
        q = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
        total += sum(float(p) * (math.log(p) - math.log(q[u])) for u, p in enumerate(bigram[v]) if p)
    return total / len(kept)


def test_without_a_meaning_there_is_no_value():
    one_layer = build("ihead_full", ihead_layers=1)
    assert weight_probes(memories_of(one_layer), TRIGGERS, UNIFORM) == NONE
    assert memories_of(nn.Linear(2, 2)) is None
    assert weight_probes(None, TRIGGERS, UNIFORM) == NONE
    rotary = weight_probes(memories_of(build(use_rope=True)), TRIGGERS, UNIFORM)
    assert {name for name, value in rotary.items() if value is None} == {"wk0_acc", "wk0_64_acc", "ff1_loss"}
    with pytest.raises(ValueError, match="no vectors for positions"):
        position_key_scores(memories_of(build(use_rope=True)))
    assert weight_probes(memories_of(build()), [], UNIFORM)["wk1_acc"] is None, "no trigger"
    assert weight_probes(memories_of(build(tokens_per_sample=1)), None, UNIFORM)["wk0_acc"] is None


def test_short_sequences_have_one_value_of_positions():
    probes = weight_probes(memories_of(build(seed=3)), None, UNIFORM, cutoff=T + 5)
    assert probes["wk0_acc"] == probes[f"wk0_{T + 5}_acc"]
    assert weight_probes(memories_of(build()), None, UNIFORM, cutoff=1)["wk0_1_acc"] is None


def test_the_model_stays_as_it_is():
    model = build(final_ffn=True, mlp_final_ffn=True).float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weight_probes(memories_of(model), None, UNIFORM)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert memories_of(model).tokens.dtype == torch.float64
