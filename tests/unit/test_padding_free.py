"""Vocabularies without padding, whose ``pad()`` is None: no row is special, and every token is read."""

import math
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from torch import nn

from fairseq_transnorm.data.symbol_dictionary import SymbolDictionary
from fairseq_transnorm.models.normgrowth.config import NormGrowthLMConfig
from fairseq_transnorm.models.normgrowth.lm import NormGrowthLM
from fairseq_transnorm.models.transnormer.config import TransNormerLMConfig
from fairseq_transnorm.models.transnormer.lm import TransNormerLM
from fairseq_transnorm.modules.positions import (
    LearnedPositions,
    SinusoidalPositions,
    find_padding,
    number_positions,
    padding_of,
)
from fairseq_transnorm.tasks.growth_log import GrowthLogMixin

V, T = 5, 12
SYMBOLS = SymbolDictionary("abcde")
SIZES = {"decoder_embed_dim": 8, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_embed_dim": 16}
LENGTHS = {"tokens_per_sample": T, "max_target_positions": None, "dropout": 0.0}
MODELS = {
    "transnormer_lm": (TransNormerLM, TransNormerLMConfig, {"block_size": 4, "chunk_length": 4}),
    "transnormer_lm learned": (TransNormerLM, TransNormerLMConfig, {"block_size": 4, "abs_pos": "learned"}),
    "normgrowth_lm": (NormGrowthLM, NormGrowthLMConfig, {}),
    "normgrowth_lm sinusoidal": (NormGrowthLM, NormGrowthLMConfig, {"positions": "sinusoidal"}),
}
EVERY = pytest.mark.parametrize("name", MODELS)


def build(name, dictionary):
    kind, config, options = MODELS[name]
    cfg = OmegaConf.structured(config(**SIZES, **LENGTHS, **options))
    torch.manual_seed(1)
    return kind.build_model(cfg, SimpleNamespace(target_dictionary=dictionary))


def random_tokens(batch=3):
    return torch.randint(V, (batch, T), generator=torch.Generator().manual_seed(0))


@EVERY
def test_every_symbol_and_position_is_drawn_and_trained(name):
    model = build(name, SYMBOLS)
    tables = {"tokens": model.decoder.embed_tokens.weight}
    if isinstance(model.decoder.embed_positions, LearnedPositions):
        tables["positions"] = model.decoder.embed_positions.embedding.weight
        assert len(tables["positions"]) == T
    tokens = torch.arange(T)[None] % V
    logits, _ = model(tokens)
    assert logits.shape == (1, T, V)
    logits.square().sum().backward()
    for what, table in tables.items():
        assert table.abs().sum(1).min() > 0, what
        assert table.grad.abs().sum(1).min() > 0, what


@EVERY
def test_reading_step_by_step_equals_reading_all(name):
    model, tokens = build(name, SYMBOLS).eval(), random_tokens()  # 1 among them, which is padding elsewhere
    expected, state = model(tokens)[0], {}
    got = [model(tokens[:, :t], incremental_state=state)[0] for t in (5, 6, 9, T)]
    torch.testing.assert_close(torch.cat(got, 1), expected, rtol=1e-4, atol=1e-5)


def test_no_token_is_padding_and_the_first_has_position_0():
    tokens = random_tokens()
    assert find_padding(tokens, None) is None
    assert padding_of(tokens, None) is None
    positions, unused = number_positions(tokens, None, None, first=2)
    assert positions[0].tolist() == [*range(2, T + 2)]
    assert unused == T + 2
    with pytest.raises(ValueError, match="padding before a token"):
        padding_of(tokens, 1)


@pytest.mark.parametrize("interleaved", [False, True])
def test_sinusoids_from_position_0(interleaved):
    # D = 4: frequencies 1 and 10000^-1 in halves, 1 and 10000^-1/2 interleaved
    table = SinusoidalPositions(4, None, interleaved)(torch.arange(700)[None], 700)[0]
    w = 0.01 if interleaved else 1e-4
    for t in (0, 1, 699):
        sines, cosines = (math.sin(t), math.sin(w * t)), (math.cos(t), math.cos(w * t))
        rows = [x for pair in zip(sines, cosines, strict=True) for x in pair] if interleaved else [*sines, *cosines]
        torch.testing.assert_close(table[t], torch.tensor(rows))


@EVERY
def test_a_vocabulary_with_padding_is_drawn_as_ever(name):
    dictionary = Dictionary()  # 4 special symbols, padding is 1
    model = build(name, dictionary)
    torch.manual_seed(1)
    expected = nn.Embedding(len(dictionary), 8, 1)
    if name.startswith("transnormer"):
        nn.init.normal_(expected.weight, std=8**-0.5)
        nn.init.zeros_(expected.weight[1])
    assert torch.equal(model.decoder.embed_tokens.weight, expected.weight)
    if name.endswith("learned"):  # drawn next
        positions = nn.Embedding(T + 2, 8, 1)
        nn.init.normal_(positions.weight, std=8**-0.5)
        nn.init.zeros_(positions.weight[1])
        assert torch.equal(model.decoder.embed_positions.embedding.weight, positions.weight)


@pytest.mark.parametrize("pad", [None, 1, 7])
def test_the_log_of_growth_reads_every_real_token(pad):
    task, tokens = GrowthLogMixin(), random_tokens()
    task.source_dictionary = SimpleNamespace(pad=lambda: pad)
    real = task.real_tokens({"net_input": {"src_tokens": tokens}})
    assert real.dtype == torch.bool
    assert torch.equal(real, torch.tensor([[token != pad for token in row] for row in tokens.tolist()]))
