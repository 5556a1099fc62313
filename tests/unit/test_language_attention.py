"""What models of formal languages do with a sequence, against slow loops, and how heads compare with the program's."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fairseq_transnorm.measure import language_attention as measured
from fairseq_transnorm.measure.checkpoints import Run
from fairseq_transnorm.measure.language_attention import (
    head_fits,
    heat_map_diagonal,
    look_at,
    map_rows,
    outputs_for,
    target_masses,
    text_block,
)
from fairseq_transnorm.models.rasp.config import RaspTransformerConfig
from fairseq_transnorm.models.rasp.transformer import RaspTransformer
from fairseq_transnorm.tasks.rasp_lang import RaspLangConfig, RaspLangTask


def run_of(language, path="runs/r/checkpoint_best.pt", **values):
    """A model with its initial weights, larger ones so that attention differs between positions."""
    torch.manual_seed(1)
    task = RaspLangTask.setup_task(RaspLangConfig(_name="rasp_lang", language=language, max_length=9, test_size=70))
    size = {"rasp_layers": 2, "rasp_heads": 2, "rasp_dim": 8} | values
    model = RaspTransformer.build_model(RaspTransformerConfig(_name="rasp_transformer", **size), task).eval()
    for layer in model.layers:
        layer.attn.qkv.weight.data.mul_(3)
    return Run(Path(path), model, SimpleNamespace(task=task.cfg), task, updates=30, epochs=3)


def program_of_sort(text):
    """The two matrices of the program, from their definition."""
    n = len(text)
    before = [[text[k] < text[q] or (text[k] == text[q] and k < q) for k in range(n)] for q in range(n)]
    return {(0, 0): before, (1, 0): [[q == sum(before[k]) for k in range(n)] for q in range(n)]}


def compare(weights, target):
    """Target mass and squared difference, cell by cell."""
    n, mass, squares = len(target), 0.0, 0.0
    for q in range(n):
        total = sum(target[q][k] + 1e-8 for k in range(n))
        for k in range(n):
            mass += weights[q][k] * target[q][k]
            squares += (weights[q][k] - (target[q][k] + 1e-8) / total) ** 2
    return mass / n, squares / n**2


@pytest.mark.parametrize("text", ["dbbda", "§dbbda"])
def test_a_sequence_gets_its_bos_once(text):
    run = run_of("sort_26_bos")
    look = look_at(run, text)
    assert (look.sequence, look.inputs, look.axis) == ("dbbda", list("§dbbda"), list("§dbbda"))
    assert look.targets == list("§abbdd")
    logits, extra = run.model(torch.tensor([[26, 3, 1, 1, 3, 0]]), return_attention=True)
    assert look.outputs == [run.task.language.classes[number] for number in logits[0].argmax(-1)]
    for layer in range(2):
        torch.testing.assert_close(look.weights[layer], extra["attn"][layer][0])
        torch.testing.assert_close(look.weights[layer], look.scores[layer].softmax(-1))


@pytest.mark.parametrize("flags", [{}, {"model_bos": True}])
def test_heads_are_compared_with_the_program_cell_by_cell(flags):
    run = run_of("sort_26", **flags)
    look = look_at(run, "dbbda")
    own = 1 if flags else 0
    assert look.axis == ["BOS"] * own + list("dbbda")
    wanted = program_of_sort("dbbda")
    assert set(look.fits) == set(wanted)
    for (layer, head), target in wanted.items():
        fit = look.fits[layer, head]
        assert fit.target == target
        weights = look.weights[layer][head, own:, own:].tolist()
        assert (fit.target_mass, fit.squared_difference) == pytest.approx(compare(weights, target), rel=1e-5)


def test_masses_are_means_over_the_first_test_sequences_that_are_long_enough():
    run = run_of("sort_26")
    texts = [text for text in run.task.samples.draw(run.task.language.sampler, "test") if len(text) >= 3]
    assert len(texts) > 51, "several batches"
    looks = [look_at(run, text) for text in texts[:51]]
    for number, place in enumerate([(0, 0), (1, 0)]):
        wanted = [sum(getattr(look.fits[place], name) for look in looks) / 51 for name in measured.HeadFit._fields[1:]]
        row = head_fits(run, 51, 3)[number]
        assert [row["target_mass"], row["squared_difference"]] == pytest.approx(wanted, rel=1e-5)
        assert (row["layer"], row["head"], row["sequences"]) == (*place, 51)
        assert target_masses(run, 51, 3)[number] == row["target_mass"]


@pytest.mark.parametrize(
    ("language", "flags", "message"),
    [
        ("reverse_26", {}, "reverse_26 has no program of attention heads"),
        ("hist2_26", {"rasp_heads": 1}, "the program of hist2_26 has 2 layers and 2 heads, the model 2 and 1"),
        ("sort_26", {"rasp_layers": 1}, "the program of sort_26 has 2 layers and 1 head, the model 1 and 2"),
        ("sort_26", {"rasp_attention": "linear"}, "linear attention has no distribution"),
    ],
)
def test_what_has_no_target_mass(language, flags, message):
    with pytest.raises(ValueError, match=f"runs/r/checkpoint_best.pt: {message}"):
        target_masses(run_of(language, **flags))


def test_a_smaller_model_is_compared_where_it_has_the_heads():
    assert list(look_at(run_of("sort_by_freq_26", rasp_heads=1), "abca").fits) == [(0, 0), (1, 0)]


def test_linear_attention_has_weights_and_no_scores():
    run = run_of("sort_26", rasp_attention="linear")
    look = look_at(run, "dbbda")
    assert (look.attention, look.scores, look.fits) == ("linear", None, {})
    x = run.model.embed_tokens(torch.tensor([[3, 1, 1, 3, 0]])) + run.model.embed_positions(torch.arange(5)[None], 5)
    torch.testing.assert_close(look.weights[0], run.model.layers[0].attn.attention_weights(x)[0])
    assert {row["score"] for row in map_rows(run, "r", look)} == {None}
    divided = look_at(run_of("sort_26", rasp_attention="linear_denominator"), "dbbda")
    assert divided.attention == "linear_denominator"
    torch.testing.assert_close(divided.weights[1].sum(-1), torch.ones(2, 5))
    assert set(divided.fits) == {(0, 0), (1, 0)}


def test_rows_have_every_cell_in_its_place():
    run = run_of("sort_26", model_bos=True)
    look = look_at(run, "ba")
    rows = map_rows(run, "m", look)
    assert len(rows) == 2 * 2 * 3 * 3
    for row in rows:
        places = row["layer"], row["head"], row["query"], row["key"]
        assert row["weight"] == look.weights[places[0]][places[1:]].item()
        assert row["score"] == look.scores[places[0]][places[1:]].item()
        names = row["query_symbol"], row["key_symbol"]
        assert names == tuple(["BOS", "b", "a"][place] for place in places[2:])
        assert (row["model"], row["language"], row["sequence"]) == ("m", "sort_26", "ba")
    cells = {(r["query"], r["key"]): r["target"] for r in rows if (r["layer"], r["head"]) == (0, 0)}
    # its own BOS has no target; only a comes before b
    assert [[cells[query, key] for key in range(3)] for query in range(3)] == [[None] * 3, [None, 0, 1], [None, 0, 0]]
    assert {row["target"] for row in rows if row["head"] == 1} == {None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aBc", "'B' in 'aBc' is not in the alphabet of reverse_10; use 'abcdefghij'"),
        ("", "an empty sequence"),
        ("a" * 13, "13 symbols are more than --max-positions 12"),
        ("a" * 257, "a map of 257 symbols has no cells that can be seen; give at most 256"),
    ],
)
def test_sequences_that_no_model_can_take(text, message):
    run = run_of("reverse_10", max_positions=12)
    with pytest.raises(ValueError, match=f"runs/r/checkpoint_best.pt: .*{message}"):
        look_at(run, text)
    assert outputs_for(run, text) is None


def test_rows_with_their_maximum_on_the_other_diagonal(monkeypatch):
    run = run_of("reverse_26")
    mirrored = 0.1 + torch.eye(8).flip(0)
    mirrored[3, 0] = 5.0  # one row looks elsewhere
    layers = [torch.rand(1, 2, 8, 8), torch.stack([torch.eye(8), mirrored])[None]]
    monkeypatch.setattr(measured, "attention_maps", lambda run, tokens: (torch.zeros(1, 8, 26), layers, None))
    assert heat_map_diagonal(run, layer=1, head=1) == 7
    assert heat_map_diagonal(run, layer=1, head=0) == 0


def test_the_text_block(tmp_path):
    run = run_of("hist2_26_bos", tmp_path / "checkpoint_best.pt")
    look = look_at(run, "dbbda")

    def lines():
        return dict(line.split(": ", 1) for line in text_block(run, "mine", look).splitlines())

    assert lines()["test accuracy"] == "not evaluated"
    assert lines()["epochs"] == "3"
    assert lines()["checkpoint"] == f"{run.path}, after 3 epochs and 30 updates"
    first = text_block(replace(run, epochs=1, updates=1), "mine", look)
    assert f"checkpoint: {run.path}, after 1 epoch and 1 update\n" in first
    evaluated = {"checkpoint": "checkpoint_best.pt", "test": {"accuracy": 0.9999999}}
    results = {"arguments": {"language": "hist2_26_bos"}, "epochs": 15, "best_epoch": 9, "stop_reason": "end"}
    (tmp_path / "results.json").write_text(json.dumps(results | {"evaluated": evaluated}))
    found = lines()
    assert list(found)[:4] == ["model", "checkpoint", "epochs", "test accuracy"]
    assert found["model"] == "mine"
    assert (found["epochs"], found["test accuracy"], found["input length"]) == ("15", "1.0-", "6")
    assert (found["input"], found["target"]) == ("§dbbda", "§ 2 2 2 2 1")
    assert found["output"] == " ".join(look.outputs)
    fit = look.fits[0, 1]
    assert found["layer 0 head 1"] == (
        f"target mass {fit.target_mass:.4f}, mean squared difference {fit.squared_difference:.3g}"
    )
    (tmp_path / "results.json").write_text(json.dumps(results | {"evaluated": evaluated | {"checkpoint": "other.pt"}}))
    assert lines()["test accuracy"] == "1.0- (of other.pt, not of this checkpoint)"
    (tmp_path / "results.json").write_text(json.dumps(results | {"evaluated": None}))
    assert lines()["test accuracy"] == "not evaluated"
    assert not math.isnan(fit.target_mass)


def test_symbols_that_cannot_be_printed_are_escapes_in_texts():
    run = run_of("reverse_100")
    block = text_block(run, "m", look_at(run, "a\n\t b\x0b\\n"))
    assert "\ninput: a\\n\\t b\\x0b\\\\n\n" in block, "a backslash is two: it begins no escape"
    assert "\ntarget: n\\\\\\x0bb \\t\\na\n" in block
