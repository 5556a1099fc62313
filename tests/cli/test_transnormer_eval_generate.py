"""Evaluation and generation through fairseq's commands, against the plain forward pass of the loaded model."""

import json
import math
import re

import pytest
import torch
from fairseq.data import data_utils
from fairseq.models import FairseqDecoder, FairseqLanguageModel
from fairseq.sequence_generator import SequenceGenerator
from torch.nn.functional import log_softmax

from fairseq_transnorm import USER_DIR
from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.models.transnormer.lm import TransNormerLM
from tests.cli.conftest import LENGTH, SCRIPT_ENV
from tests.helpers import run_cli

TASK = ["--user-dir", USER_DIR, "--task", "language_modeling", "--cpu"]
LONG = ["--model-overrides", "{'max_target_positions': 512}"]
PROMPT = "the old king"
SUMMARY = re.compile(r'\{.*"valid_loss"').match


@pytest.fixture(scope="module")
def run(trained, tiny_lm_data):
    """The trained model with room for sequences longer than those of its training."""
    run = load_run(trained, tiny_lm_data)
    run.model.decoder.limit = 512
    return run


def tokens_of(run, text):
    return run.task.source_dictionary.encode_line(text, append_eos=False, add_if_not_exist=False).tolist()


@torch.no_grad()
def log_probs(run, tokens):
    """Log-probability of each token of the whole vocabulary after each token, nats, ``T N``."""
    return log_softmax(run.model(torch.tensor([tokens]))[0][0], dim=-1)


def stream(run, data, subset):
    """The split as one list of tokens, each line with its ``</s>``."""
    dataset = data_utils.load_indexed_dataset(str(data / subset), run.task.source_dictionary)
    return torch.cat([dataset[i] for i in range(len(dataset))]).tolist()


def mean_loss(run, tokens, step, context):
    """Nats per token when the text is read ``step`` tokens at a time, each time with ``context`` tokens before them."""
    total = 0.0
    # fairseq puts a </s> before the text, and shows each block the last token of the one before
    source = [run.task.source_dictionary.eos(), *tokens]
    for start in range(0, len(tokens), step):
        first = max(0, start - context)
        stop = min(start + step, len(tokens))
        scores = log_probs(run, source[first:stop])
        total -= sum(float(scores[i - first, tokens[i]]) for i in range(start, stop))
    return total / len(tokens)


@pytest.fixture(scope="module")
def report(trained, tiny_lm_data, tmp_path_factory):
    """Output and rows of scripts/eval_alm.sh."""
    out = tmp_path_factory.mktemp("eval") / "new" / "perplexity.json"
    printed = run_cli("scripts/eval_alm.sh", trained, tiny_lm_data, env=SCRIPT_ENV | {"OUT": out}).stdout
    return printed, json.loads(out.read_text())


def test_the_script_reports_both_conventions_of_each_split(report, run, tiny_lm_data):
    printed, rows = report
    window = 400 * LENGTH // 512
    expected = [(s, c, w) for s in ("valid", "test") for c, w in (("blocks", 0), ("context_window", window))]
    assert [(row["subset"], row["convention"], row["context_window"]) for row in rows] == expected
    for row in rows:
        tokens = stream(run, tiny_lm_data, row["subset"])
        assert (row["tokens"], row["tokens_per_sample"]) == (len(tokens), LENGTH)
        loss = mean_loss(run, tokens, LENGTH - row["context_window"], row["context_window"])
        assert row["loss_nats"] == pytest.approx(loss, rel=1e-5)
        assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert f"{row['perplexity']:.3f} perplexity" in printed
    assert rows[0]["perplexity"] < 20, "the model learned nothing, so the tests of this file test little"
    assert "without shared context" in printed
    assert f"context window of {window} tokens" in printed


def test_the_numbers_are_those_of_fairseq_eval_lm(report, trained, tiny_lm_data):
    row = next(row for row in report[1] if row["subset"] == "test" and row["context_window"])
    flags = ["--path", trained, "--gen-subset", "test", "--tokens-per-sample", LENGTH]
    output = run_cli("fairseq-eval-lm", tiny_lm_data, *TASK, *flags, "--context-window", row["context_window"]).stdout
    assert f"Loss (base 2): {row['loss_bits']:.4f}, Perplexity: {row['perplexity']:.2f}" in output


def test_fairseq_validate_gives_the_loss_of_training_and_of_blocks(report, trained, tiny_lm_data):
    # without the second flag fairseq leaves out the last batch, unless its size is a multiple of 8
    flags = ["--path", trained, "--batch-size", 4, "--required-batch-size-multiple", 1]
    output = run_cli("fairseq-validate", tiny_lm_data, *TASK, *flags).stdout
    loss = re.search(r"valid on 'valid' subset \| loss ([\d.]+)", output)[1]
    row = next(row for row in report[1] if row["subset"] == "valid" and not row["context_window"])
    assert float(loss) == pytest.approx(row["loss_bits"], abs=6e-4)
    lines = (trained.parent / "train.log").read_text().splitlines()
    assert [line["valid_loss"] for line in map(json.loads, filter(SUMMARY, lines))][-1] == loss


def hypothesis(output):
    """(score in bits, symbols, score of each symbol and the last </s> in bits) of the first hypothesis."""
    _, score, text = re.search(r"^(H-0)\t(\S+)\t(.*)$", output, re.M).groups()
    return float(score), text.split(), [float(x) for x in re.search(r"^P-0\t(.*)$", output, re.M)[1].split()]


def printed(dictionary, tokens):
    """The symbols as fairseq prints them, without <s> and </s>."""
    return [dictionary[token] for token in tokens if token not in (dictionary.bos(), dictionary.eos())]


def test_greedy_generation_equals_the_full_forward(run, trained, tiny_lm_data):
    length = 300  # 18 blocks of 16, and their borders
    flags = ["--path", trained, "--beam", 1, "--max-len-b", length, "--min-len", length, *LONG]
    output = run_cli("fairseq-interactive", tiny_lm_data, *TASK, *flags, stdin=PROMPT + "\n").stdout
    _, symbols, scores = hypothesis(output)

    dictionary = run.task.source_dictionary
    tokens = [dictionary.eos(), *tokens_of(run, PROMPT)]
    while len(tokens) <= length:
        last = log_probs(run, tokens)[-1]
        last[[dictionary.pad(), dictionary.eos()]] = -math.inf  # --min-len forbids the end
        tokens.append(int(last.argmax()))
    assert symbols == printed(dictionary, tokens[1:])
    assert len(set(symbols[50:])) > 10, "a loop of a few words would prove little"
    expected = log_probs(run, tokens)
    bits = [float(expected[i, tokens[i + 1]]) / math.log(2) for i in range(length)]
    torch.testing.assert_close(torch.tensor(scores[:length]), torch.tensor(bits), rtol=0, atol=2e-4)


class _WithoutState(FairseqDecoder):
    """Reads all tokens anew at each step: what incremental decoding must agree with."""

    def __init__(self, decoder):
        super().__init__(decoder.dictionary)
        self.inner = decoder

    def forward(self, tokens, encoder_out=None, **kwargs):
        return self.inner(tokens)

    def max_positions(self):
        return self.inner.max_positions()


def test_beam_search_equals_beam_search_without_state(run, trained, tiny_lm_data):
    length = 80
    flags = ["--path", trained, "--beam", 4, "--max-len-b", length, "--min-len", 70, *LONG]
    output = run_cli("fairseq-interactive", tiny_lm_data, *TASK, *flags, stdin=PROMPT + "\n").stdout
    score, symbols, scores = hypothesis(output)

    dictionary = run.task.target_dictionary
    model = FairseqLanguageModel(_WithoutState(run.model.decoder))
    generator = SequenceGenerator([model], dictionary, beam_size=4, max_len_b=length, min_len=70)
    prefix = torch.tensor([tokens_of(run, PROMPT)])
    start = torch.tensor([[dictionary.eos(), *prefix[0].tolist()]])
    sample = {"net_input": {"src_tokens": start, "src_lengths": torch.tensor([start.shape[1]])}}
    best = generator.generate([model], sample, prefix_tokens=prefix)[0][0]
    assert symbols == printed(dictionary, best["tokens"].tolist())
    assert score == pytest.approx(float(best["score"]) / math.log(2), abs=2e-5)
    bits = best["positional_scores"] / math.log(2)
    torch.testing.assert_close(torch.tensor(scores), bits, rtol=0, atol=2e-4)

    assert symbols != search(run, prefix, beam=1, length=length), (
        "the beam never changed its mind, so nothing was reordered"
    )


def search(run, prefix, beam, length):
    generator = SequenceGenerator([run.model], run.task.target_dictionary, beam, max_len_b=length, min_len=70)
    start = torch.cat([torch.tensor([[run.task.target_dictionary.eos()]]), prefix], dim=1)
    sample = {"net_input": {"src_tokens": start, "src_lengths": torch.tensor([start.shape[1]])}}
    best = generator.generate([run.model], sample, prefix_tokens=prefix)[0][0]
    return printed(run.task.target_dictionary, best["tokens"].tolist())


def test_fairseq_generate_scores_a_batch_of_prefixes_like_the_full_forward(run, trained, tiny_lm_data):
    flags = ["--path", trained, "--gen-subset", "test", "--sample-break-mode", "eos", "--tokens-per-sample", LENGTH]
    output = run_cli("fairseq-generate", tiny_lm_data, *TASK, *flags, "--batch-size", 8, "--beam", 2).stdout
    found = re.findall(r"^H-(\d+)\t\S+\t(.*)\n(?:D-.*\n)P-\1\t(.*)$", output, re.M)
    assert len(found) == 40
    assert len({len(text.split()) for _, text, _ in found}) > 5, "the batches need no padding"
    for _, text, scores in found:
        eos = run.task.target_dictionary.eos()
        tokens = [eos, *tokens_of(run, text), eos]
        expected = log_probs(run, tokens[:-1])
        bits = [float(expected[i, tokens[i + 1]]) / math.log(2) for i in range(len(tokens) - 1)]
        assert [float(x) for x in scores.split()] == pytest.approx(bits, abs=2e-4)


def test_generate_script_prints_texts_beyond_the_training_length(trained, tiny_lm_data):
    env = SCRIPT_ENV | {"PROMPT": PROMPT, "LENGTH": 150}
    command = ["scripts/generate.sh", trained, tiny_lm_data, "--min-len", 150, "--seed", 3, "--cpu"]
    output = run_cli(*command, env=env).stdout
    texts = [line for line in output.splitlines() if not line.startswith("INFO")]
    assert len(texts) == 1, output
    assert texts[0].startswith(PROMPT + " ")
    assert 150 <= len(texts[0].split()) <= 153  # LENGTH does not count the prompt
    assert texts[0] in run_cli(*command, env=env).stdout, "the same seed gives another text"


def test_generate_script_goes_on_after_the_end_of_a_line(run, trained, tiny_lm_data):
    env = SCRIPT_ENV | {"PROMPT": PROMPT, "LENGTH": 120, "GO_ON": 1}
    output = run_cli("scripts/generate.sh", trained, tiny_lm_data, "--sampling-topk", 1, "--cpu", env=env).stdout
    lines = [line for line in output.splitlines() if not line.startswith("INFO")]

    # the likeliest token each time, </s> as any other
    dictionary = run.task.target_dictionary
    tokens = [dictionary.eos(), *tokens_of(run, PROMPT)]
    start = len(tokens)
    while len(tokens) < start + 120:
        last = log_probs(run, tokens)[-1]
        last[[dictionary.pad(), dictionary.bos()]] = -math.inf
        tokens.append(int(last.argmax()))
    expected = " ".join("\n" if t == dictionary.eos() else dictionary[t] for t in tokens[1:])
    assert lines == [line.strip() for line in expected.split("\n")]
    assert len(lines) > 3


def test_generate_script_reads_prompts_and_shows_fairseq_s_own_output(trained, tiny_lm_data):
    command = ["scripts/generate.sh", trained, tiny_lm_data, "--beam", 2, "--cpu"]
    env = SCRIPT_ENV | {"LENGTH": 8, "RAW": 1}
    output = run_cli(*command, env=env, stdin=f"{PROMPT}\nmy brother\n").stdout
    assert re.findall(r"^S-(\d)\t(.*)$", output, re.M) == [("0", PROMPT), ("1", "my brother")]
    assert len(re.findall(r"^P-", output, re.M)) == 2


def test_hub_scores_and_samples(run, trained, tiny_lm_data):
    hub = TransNormerLM.from_pretrained(str(trained.parent), trained.name, str(tiny_lm_data))
    text = "the duke fears the sea at dawn ."
    scored = hub.score(text)
    tokens = [*tokens_of(run, text), run.task.target_dictionary.eos()]
    expected = log_probs(run, [run.task.target_dictionary.eos(), *tokens[:-1]])
    got = scored["positional_scores"][: len(tokens) - 1]
    torch.testing.assert_close(got, torch.stack([expected[i, t] for i, t in enumerate(tokens[:-1])]))
    sampled = hub.sample(PROMPT, beam=1, sampling=True, sampling_topk=5, max_len_b=20, nbest=1)
    assert sampled.startswith(PROMPT)
    assert len(sampled.split()) > len(PROMPT.split())


def test_generate_script_undoes_the_tokenisation_of_the_data(tiny_lm_data, tmp_path):
    text = [f for split in ("train", "valid", "test") for f in (f"--{split}", tiny_lm_data.parent / f"{split}.txt")]
    how = ["--tokenizer", "sentencepiece", "--vocab-size", 80, "--workers", 1, "--out", tmp_path / "data"]
    run_cli("preprocessing/text.py", *text, *how)
    env = SCRIPT_ENV | {"ARCH": "transnormer_lm_tiny", "SAVE_DIR": tmp_path, "LENGTH": 40, "PROMPT": "The old kings"}
    run_cli("scripts/train_alm.sh", tmp_path / "data", "--tokens-per-sample", 32, "--max-update", 3, env=env)
    generate = ["scripts/generate.sh", tmp_path / "checkpoint_last.pt", tmp_path / "data", "--min-len", 30]
    for mode in ("RAW", "GO_ON"):
        output = run_cli(*generate, env=env | {mode: 1}).stdout
        if mode == "RAW":
            assert re.search(r"^S-0\t▁", output, re.M), "the prompt was not cut into pieces"
            output = re.search(r"^D-0\t\S+\t(.*)", output, re.M)[1]
        assert "he old kings" in output  # T is not in the corpus
        assert "▁" not in output
