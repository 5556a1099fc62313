"""Statistics of saturated heads by hand, and networks with other weights in place of their softmax."""

import logging
from pathlib import Path

import pytest
import torch
from fairseq.modules import MultiheadAttention
from omegaconf import OmegaConf
from torch import nn

from fairseq_transnorm.measure import saturated_heads
from fairseq_transnorm.measure.attention import hardmax_of, replaced_weights, softmax_attentions
from fairseq_transnorm.measure.batches import Batch, SentenceBatches
from fairseq_transnorm.measure.checkpoints import Run
from fairseq_transnorm.measure.efficiency import build_model
from fairseq_transnorm.measure.hidden_states import HiddenStates
from fairseq_transnorm.measure.saturated_heads import (
    FUTURE,
    PREFIX,
    SaturatedHeads,
    fill_up,
    head_rows,
    head_sums,
    mask_of,
    set_mask,
    uniform_sums,
)

LENGTH, VOCABULARY, PAD = 16, 30, 1
MODELS = {
    "transformer_lm": {},
    "roberta": {},
    "dslm_bert": {},
    "transnormer_lm_tiny": {},
    "transnormer_mlm_tiny": {},
    "normgrowth_control": {},
    "normgrowth_pre_norm": {"attn_mask": "multiplicative"},
    "normgrowth_si_norm": {},
}


def build(name, **options):
    """A model with random weights that are large enough for its heads to differ, in float64."""
    torch.manual_seed(0)
    model = build_model(name, LENGTH, 16, 2, 4, VOCABULARY, **MODELS.get(name, {}) | options).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def some_tokens(rows=5):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, VOCABULARY, (rows, 12), generator=generator)
    keep = torch.arange(12) < torch.arange(12, 12 - rows, -1)[:, None]
    return tokens.masked_fill(~keep, PAD), keep


@pytest.mark.parametrize("name", MODELS)
def test_the_networks_own_weights_in_its_place_change_nothing(name):
    model, (tokens, keep) = build(name), some_tokens()
    network = HiddenStates(model)
    with torch.no_grad():
        expected = network(tokens).encodings[keep]
        with replaced_weights(model, lambda _name, competition: competition.weights()):
            found = network(tokens).encodings[keep]
        with replaced_weights(model, hardmax_of(model)):
            saturated = network(tokens).encodings[keep]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert saturated.isfinite().all()
    assert (saturated - expected).abs().max() > 1e-3 or name.startswith("normgrowth_si_norm")
    assert all(not {"mix", "forward"} & set(vars(module)) for module in model.modules()), "nothing stays"


def test_nothing_stays_after_an_error_either():
    model, (tokens, _) = build("transformer_lm"), some_tokens()

    def fail(_name, _competition):
        raise RuntimeError("no weights")

    with pytest.raises(RuntimeError, match="no weights"), replaced_weights(model, fail):
        model(tokens)
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("mask", ["none", "float", "bool", "added"])
def test_fairseqs_attention_is_redone_with_every_mask(mask):
    torch.manual_seed(0)
    module = MultiheadAttention(8, 2, self_attention=True).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(6, 3, 8)
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    masks = {"none": None, "float": torch.zeros(6, 6).masked_fill(future, -torch.inf), "bool": future}
    masks["added"] = masks["float"] + torch.randn(6, 6)
    given = {"query": x, "key": x, "value": x, "attn_mask": masks[mask]}
    padding = torch.arange(6) >= torch.tensor([6, 4, 5])[:, None]
    with torch.no_grad():
        expected, mean = module(**given, key_padding_mask=padding)
        with replaced_weights(module, lambda _name, competition: competition.weights()):
            out, weights = module(**given, key_padding_mask=padding)
            heads = module(**given, key_padding_mask=padding, need_head_weights=True)[1]
            nothing = module(**given, key_padding_mask=padding, need_weights=False)[1]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights, mean)
    torch.testing.assert_close(heads.mean(0), mean)
    assert nothing is None


def test_what_cannot_be_redone_is_refused():
    with pytest.raises(ValueError, match=r"no attention of TransNormerLM has a softmax.*linear attention"):
        softmax_attentions(build("transnormer_lm_tiny", layer_split="linear,linear"))
    with pytest.raises(ValueError, match=r"decoder.layers.0.attn attends over the sequences of a batch"):
        SaturatedHeads(build("normgrowth_vaswani", attention_axis="batch"))
    odd = MultiheadAttention(8, 2, self_attention=True, add_bias_kv=True)
    with pytest.raises(ValueError, match="keys that belong to no token"), replaced_weights(odd, None):
        pass


def test_statistics_by_hand():
    weights = torch.tensor(
        [
            [[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 1.0], [0.25, 0.25, 0.25, 0.25]],
            [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [2e-5, 1 - 2e-5, 0, 0], [5e-6, 0, 0, 1 - 5e-6]],
        ]
    )[None]
    keep = torch.tensor([[True, True, True, True]])
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    first, second = head_sums(weights, causal, keep).rows()
    assert first == {
        "positions_attended": 8 / 4,
        "split_probability": 2 / 4,
        "std_attended": pytest.approx((torch.tensor([1.0, 2, 1, 4]).std()).item()),
        "forbidden_weight": 1 / 4,
        "mean_share": 2 / 3,
        "queries": 4,
    }
    assert second["positions_attended"] == 5 / 4
    assert second["split_probability"] == 1 / 4
    assert second["forbidden_weight"] == second["mean_share"] == 0
    third = next(head_sums(weights, causal, torch.tensor([[True, True, False, False]])).rows())
    assert (third["queries"], third["positions_attended"], third["mean_share"]) == (2, 1.5, 1.0)
    everything = list(head_sums(weights, None, keep).rows())
    assert [row["mean_share"] for row in everything] == [1 / 4, 0]
    alone = next(head_sums(weights[:, :, :1, :1], None, keep[:, :1]).rows())
    assert alone["std_attended"] == 0.0
    assert alone["mean_share"] is None, "no query has a choice"


def test_weights_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="no weight above the threshold"):
        head_sums(torch.full((1, 1, 2, 2), torch.nan), None, torch.ones(1, 2, dtype=torch.bool))
    model = build("normgrowth_control").float()
    with torch.no_grad():
        model.decoder.layers[1].attn.qkv.weight.mul_(1e30)
    with pytest.raises(ValueError, match=r"layers\.1\.attn, c = 1000: .*--float64"):
        SaturatedHeads(model)(*some_tokens())


@pytest.mark.parametrize(
    ("length", "future", "prefix"),
    [(83, (41.0120, 0.9759), (42.0, 0.9880)), (700, (349.5014, 0.9971), (350.5, 0.9986)), (31, (15.0323, None), None)],
)
def test_uniform_heads_have_the_published_modes(length, future, prefix):
    """The values that the original's figures show for 83 and 700 positions, and (T - 1)/2 + 1/T, (T + 1)/2."""
    found = {name: next(sums.rows()) for name, sums in uniform_sums(torch.ones(3, length, dtype=torch.bool)).items()}
    assert found[FUTURE]["positions_attended"] == pytest.approx((length - 1) / 2 + 1 / length)
    assert found[PREFIX]["positions_attended"] == (length + 1) / 2
    for name, expected in ((FUTURE, future), (PREFIX, prefix)):
        for value, column in zip(expected or (), ("positions_attended", "split_probability"), strict=False):
            assert value is None or found[name][column] == pytest.approx(value, abs=5e-5)
    assert found[PREFIX]["mean_share"] == 1
    assert found[PREFIX]["forbidden_weight"] == 0
    assert found[FUTURE]["forbidden_weight"] == pytest.approx(1 - 1 / length)


@pytest.mark.parametrize("name", ["transformer_lm", "dslm_bert", "normgrowth_pre_norm"])
def test_batches_and_their_parts_change_nothing(name, monkeypatch):
    model, (tokens, keep) = build(name), some_tokens()
    heads = SaturatedHeads(model, c=3.0)  # not so far out that rounding decides who wins
    together = heads(tokens, keep)
    single = [heads(tokens[i : i + 1], keep[i : i + 1]) for i in range(len(tokens))]
    monkeypatch.setattr(saturated_heads, "_NUMBERS", 4 * 12**2 * 2)  # two sequences at a time
    parts = heads(tokens, keep)
    assert len(together) == 4, "two layers, two networks"
    for key, sums in together.items():
        for other in (parts[key], sum((s[key] for s in single[1:]), single[0][key])):
            assert list(other.rows()) == [pytest.approx(row) for row in sums.rows()]


@pytest.mark.parametrize("name", ["transformer_lm", "normgrowth_control", "normgrowth_si_norm", "transnormer_lm_tiny"])
def test_causal_models_give_the_future_exactly_nothing(name):
    for sums in SaturatedHeads(build(name))(*some_tokens()).values():
        assert sums.forbidden.tolist() == [0.0] * 4
        assert sums.queries == 50


def test_padding_gets_nothing_in_a_masked_model():
    for sums in SaturatedHeads(build("roberta"))(*some_tokens()).values():
        assert sums.forbidden.tolist() == [0.0] * 4


def run_of(model, limit=LENGTH):
    dictionary = model.decoder.dictionary if hasattr(model, "decoder") else model.encoder.dictionary
    model.max_positions = lambda: limit
    task = type("Task", (), {"source_dictionary": dictionary})
    return Run(Path("some.pt"), model, OmegaConf.create({"task": {}}), task, updates=7, epochs=1)


def test_rows_of_a_run(caplog):
    model = build("normgrowth_pre_norm")
    batches = SentenceBatches([[2, 5, 6, 7, 8], [2, 9, 10], [2, 11, 12, 13]], PAD, batch_tokens=8)
    rows = head_rows(run_of(model), "mult", batches)
    assert mask_of(model) == "multiplicative"
    assert {row["length"] for row in rows} == {5}, "padding is part of the competition: it is the same for all"
    assert [(r["network"], r["layer"], r["head"]) for r in rows[:4]] == [("c = 1000", 1, head) for head in (1, 2, 3, 4)]
    assert {row["network"] for row in rows} == {"c = 1000", "hardmax", FUTURE, PREFIX}
    assert {row["queries"] for row in rows} == {12}
    assert len(rows) == 2 * 2 * 4 + 2
    assert max(row["forbidden_weight"] for row in rows if row["network"] == "hardmax") > 0
    everywhere = head_rows(run_of(model), "mult", batches, length=8, all_positions=True)
    assert {row["queries"] for row in everywhere} == {24}
    set_mask(model, "causal")
    causal = head_rows(run_of(model), "causal", batches)
    assert {row["network"] for row in causal} == {"c = 1000", "hardmax", PREFIX}
    assert {(row["length"], row["forbidden_weight"], row["mask"]) for row in causal} == {(None, 0.0, "causal")}
    assert not caplog.records
    for bad in (1, 17):
        with pytest.raises(ValueError, match=f"--length {bad} must lie between 2 and the 16 positions of some.pt"):
            head_rows(run_of(model), "x", batches, length=bad)
    with pytest.raises(ValueError, match="the mask 'causal'; norm-growth models have"):
        set_mask(build("dslm_bert"), "causal")


def test_a_model_of_the_original_s_sentences_is_filled_up_with_their_filler(monkeypatch):
    model, seen = build("normgrowth_pre_norm"), []
    run = run_of(model)
    run.cfg.task.sentence_layout, run.task.filler = "original", 9
    monkeypatch.setattr(saturated_heads, "fill_up", lambda batch, *a: seen.append(a) or fill_up(batch, *a))
    batches = SentenceBatches([[5, 6, 7, 8]], PAD, batch_tokens=8)
    head_rows(run, "mult", batches, length=8, all_positions=True)
    assert seen == [(8, 9)]


def test_what_is_left_out_or_left_behind_is_said(caplog):
    batches = SentenceBatches([[2, 5, 6, 7, 8]], PAD)
    with caplog.at_level(logging.WARNING):
        mixed = head_rows(run_of(build("transnormer_lm_tiny", layer_split="local,linear")), "t2", batches)
        head_rows(run_of(build("transformer_lm")), "fairseq", batches)
    assert {row["layer"] for row in mixed if row["module"]} == {1}
    assert "1 of the 2 attentions of t2 have no softmax and are left out" in caplog.text
    assert "fairseq has sinusoidal positions" in caplog.text


def test_sentences_are_filled_up_or_cut():
    batch = Batch(torch.tensor([[2, 5, 6], [2, 7, PAD]]), torch.tensor([[True, True, True], [True, True, False]]))
    longer = fill_up(batch, 4, filler=4)
    assert longer.tokens.tolist() == [[2, 5, 6, 4], [2, 7, 4, 4]]
    assert longer.keep.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert fill_up(batch, 2, filler=4).tokens.tolist() == [[2, 5], [2, 7]]
