"""The masked language model from pretraining to the table of fine-tunings, through the scripts."""

import json
import math
import re
from collections import Counter

import pytest
import torch

from fairseq_transnorm import USER_DIR
from fairseq_transnorm.data.binarize import Corpus, build
from fairseq_transnorm.data.fetch import file_sha256
from fairseq_transnorm.data.tokenizers import Tokenization
from fairseq_transnorm.measure import fine_tuning, masked_perplexity
from fairseq_transnorm.measure.checkpoints import load_run, read_state
from fairseq_transnorm.measure.logs import read_log
from fairseq_transnorm.measure.masked_perplexity import Settings
from fairseq_transnorm.models.transnormer.mlm import TransNormerMLM
from tests.cli.conftest import BLM_FLAGS, LENGTH, SCRIPT_ENV, blm_env
from tests.helpers import build_sentence_data, run_cli, sentences

PAPER = SCRIPT_ENV | {"SEQUENCES": "", "BATCH_SIZE": "", "DRY_RUN": 1}
ROWS = {"train": 64, "valid": 48}


def validations(folder, split="valid"):
    return [row for row in read_log(folder) if row["split"] == split]


# 512 sequences whatever the number of processes
@pytest.mark.parametrize(("gpus", "update_freq"), [(0, 128), (8, 16)])
def test_the_recipe_of_the_paper(gpus, update_freq, tiny_lm_data):
    output = run_cli("scripts/train_blm.sh", tiny_lm_data, "--max-update=70", env=PAPER | {"GPUS": gpus}).stdout
    assert "Batch: 512 sequences x up to 512 tokens = up to 262144 tokens per update (4 sequences in each" in output
    command = output[output.index("fairseq-train") :]
    for flags in (
        f"--batch-size 4 --update-freq {update_freq} ",
        "--task masked_lm --criterion masked_lm --tokens-per-sample 512 --sample-break-mode complete ",
        "--arch roberta_transnormer_t2 --dropout 0.1 --attention-dropout 0.1 ",
        r"--adam-betas \(0.9\,\ 0.98\) --adam-eps 1e-06 --weight-decay 0.01 --clip-norm 0.0 ",
        "--lr 5e-4 --lr-scheduler polynomial_decay --power 1 --end-learning-rate 0 --warmup-updates 3000 ",
        "--max-update 70 --total-num-update 70 --seed 1 ",
        "--save-dir checkpoints/blm ",
    ):
        assert flags in command


def test_pretraining_beats_the_frequencies_of_words(trained_blm, tiny_lm_data, tmp_path):
    output = run_cli(
        "scripts/eval_blm.sh", trained_blm, tiny_lm_data, "--cpu", env=SCRIPT_ENV | {"OUT": tmp_path / "new/p.json"}
    ).stdout
    rows = json.loads((tmp_path / "new/p.json").read_text())
    assert [(row["subset"], row["convention"]) for row in rows] == [("valid", "masked"), ("test", "masked")]
    for row in rows:
        assert 1 < row["perplexity"] < 0.6 * row["unigram_perplexity"]
        assert row["perplexity"] == pytest.approx(math.exp(row["loss_nats"]))
        words = (tiny_lm_data.parent / f"{row['subset']}.txt").read_text().split()
        assert row["tokens"] == len(words) + 40, "every word and the end of each line"
        assert 0.1 < row["masked_tokens"] / row["tokens"] < 0.2
        assert f"{row['perplexity']:.3f} masked perplexity" in output
        assert row["fingerprint"] in output
    # the seed of the training's masks was 1 as well
    assert validations(trained_blm.parent)[-1]["loss"] == pytest.approx(rows[0]["loss_bits"], abs=6e-4)
    flags = ["--task", "masked_lm", "--criterion", "masked_lm", "--tokens-per-sample", LENGTH, "--cpu"]
    flags += ["--sample-break-mode", "complete", "--valid-subset", "test", "--batch-size", 3]
    flags += ["--required-batch-size-multiple", 1, "--user-dir", USER_DIR, "--path", trained_blm]
    output = run_cli("fairseq-validate", tiny_lm_data, *flags).stdout
    assert float(re.search(r"loss (\d+\.\d+)", output)[1]) == pytest.approx(rows[1]["loss_bits"], abs=6e-4)


def measure(trained_blm, data, **settings):
    (row,) = masked_perplexity.measure(trained_blm, data, ["valid"], Settings(**settings))
    return row


def test_masks_depend_on_their_seed_and_on_nothing_else(trained_blm, tiny_lm_data):
    row = measure(trained_blm, tiny_lm_data)
    again = measure(trained_blm.parent / "checkpoint_best.pt", tiny_lm_data, max_tokens=LENGTH)
    assert again["fingerprint"] == row["fingerprint"], "in batches of another size, and for another model"
    assert again["masked_tokens"] == row["masked_tokens"]
    others = [measure(trained_blm, tiny_lm_data, seeds=[seed]) for seed in (2, 3)]
    assert len({r["fingerprint"] for r in (row, *others)}) == 3
    mean = measure(trained_blm, tiny_lm_data, seeds=[1, 2, 3])
    masked = [r["masked_tokens"] for r in (row, *others)]
    assert mean["masked_tokens"] == sum(masked)
    total = sum(n * r["loss_nats"] for n, r in zip(masked, (row, *others), strict=True))
    assert mean["loss_nats"] == pytest.approx(total / sum(masked), rel=1e-6)


def test_unigram_perplexity_is_that_of_the_masked_words(trained_blm, tiny_lm_data):
    run = load_run(trained_blm, tiny_lm_data)
    symbols = run.task.source_dictionary
    words = (tiny_lm_data.parent / "train.txt").read_text().split()
    task = masked_perplexity.masking_task(run, Settings(), 1)
    for split in ("train", "valid"):
        task.load_dataset(split)
    counts = Counter(words) + Counter({"</s>": 300, "<s>": len(task.dataset("train"))})
    valid = task.dataset("valid")
    valid.set_epoch(1)
    targets = [symbols[i] for n in range(len(valid)) for i in valid[n]["target"].tolist() if i != symbols.pad()]
    total = counts.total() + len(symbols)
    nats = -sum(math.log((counts[word] + 1) / total) for word in targets) / len(targets)
    row = measure(trained_blm, tiny_lm_data)
    assert row["masked_tokens"] == len(targets)
    assert row["unigram_perplexity"] == pytest.approx(math.exp(nats))


def test_text_that_does_not_fit_is_refused_or_counted(trained_blm, tiny_lm_data):
    whole = measure(trained_blm, tiny_lm_data)
    cut = measure(trained_blm, tiny_lm_data, tokens_per_sample=16, sample_break_mode="none")
    assert cut["tokens"] == whole["tokens"], "no word is lost at the ends of the sequences"
    with pytest.raises(ValueError, match=r"13 of the 40 sequences of split 'valid' are single lines .*--skip-long"):
        measure(trained_blm, tiny_lm_data, tokens_per_sample=16)
    row = measure(trained_blm, tiny_lm_data, tokens_per_sample=16, skip_long=True)
    assert (row["sequences"], row["sequences_left_out"]) == (27, 13)
    assert row["tokens"] < whole["tokens"]
    with pytest.raises(ValueError, match="--tokens-per-sample 600 must be from 2 to the 512 positions"):
        measure(trained_blm, tiny_lm_data, tokens_per_sample=600)
    with pytest.raises(ValueError, match="--max-tokens 63 has no room"):
        measure(trained_blm, tiny_lm_data, max_tokens=63)


def test_the_two_evaluations_know_their_models(trained, trained_blm, tiny_lm_data):
    with pytest.raises(
        ValueError, match=r"task 'language_modeling', masked perplexity is of masked_lm; .*eval_alm\.sh"
    ):
        masked_perplexity.measure(trained, tiny_lm_data)
    from fairseq_transnorm.measure import perplexity

    with pytest.raises(ValueError, match=r"is a masked language model; .*eval_blm\.sh"):
        perplexity.measure(trained_blm, tiny_lm_data)


def test_a_stopped_pretraining_goes_on_with_the_same_masks(trained_blm, tiny_lm_data, tmp_path):
    for updates in (12, 27):  # in the second epoch, and at the end of the third
        output = run_cli(
            "scripts/train_blm.sh", tiny_lm_data, *BLM_FLAGS, "--max-update", updates, env=blm_env(tmp_path)
        ).stdout
    assert f"Going on from {tmp_path}/checkpoint_last.pt after 12 updates." in output
    for split in ("valid", "train"):
        got, expected = (
            [(r["loss"], r.get("gnorm")) for r in validations(f, split) if r["updates"] in (18, 27)]
            for f in (tmp_path, trained_blm.parent)
        )
        # the line of the epoch that was interrupted tells of its second part
        assert got[split == "train" :] == expected[split == "train" :]
        assert len(expected) == 2


def test_runs_are_compared_on_the_same_masks_only(trained_blm, tiny_lm_data, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("checkpoint_last.pt", "train.log"):
            (tmp_path / name / file).symlink_to(trained_blm.parent / file)
        rows = [measure(trained_blm, tiny_lm_data)]
        (tmp_path / name / "perplexity.json").write_text(json.dumps(rows))
    output = run_cli("analysis/transnormer/compare.py", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "t").stdout
    assert f"valid ppl, masked, up to {LENGTH}" in output
    assert "the same text with the same masks" in output
    rows[0]["fingerprint"] = "0"
    (tmp_path / "b/perplexity.json").write_text(json.dumps(rows))
    done = run_cli(
        "analysis/transnormer/compare.py", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "t", check=False
    )
    assert done.returncode == 1
    assert "evaluate all of them alike" in done.stdout


TUNE = ["--lr", 1e-2, "--warmup-updates", 2, "--log-interval", 1, "--total-num-update", 100, "--no-progress-bar"]


def fine_tune(task, data, pretrained, folder, *flags, check=True, processes=1):
    env = SCRIPT_ENV | {"SAVE_DIR": folder, "SEQUENCES": 16, "BATCH_SIZE": "", "NPROC": processes}
    return run_cli("scripts/finetune_glue.sh", task, data, pretrained, *TUNE, *flags, env=env, check=check).stdout


@pytest.fixture(scope="session")
def similarity(once, tiny_lm_data, trained_blm):
    """A regression chosen by its correlations, stopped in its third epoch; beside it the data folder."""

    def build(folder):
        data = build_sentence_data(folder / "data", "STS-B", tiny_lm_data, ROWS)
        output = fine_tune("sts-b", data, trained_blm, folder / "run", "--max-update", 10)
        (folder / "output").write_text(output)

    return once("similarity", build)


def test_fine_tuning_starts_from_the_pretrained_model_and_goes_on_from_its_own(
    similarity, tiny_lm_data, trained_blm, tmp_path
):
    output = (similarity / "output").read_text()
    assert "Batch: 16 sequences x up to 512 tokens" in output
    assert f"loading pretrained model from {trained_blm}" in output
    first = validations(similarity / "run")
    assert [row["updates"] for row in first] == [4, 8, 10]
    scores = [row["pearson_and_spearman"] for row in first]
    assert scores == pytest.approx([(row["pearson"] + row["spearman"]) / 2 for row in first], abs=0.11)
    for path in (similarity / "run").glob("*.pt"):  # such scores are numpy's numbers, which the safe loader refuses
        assert torch.load(path, weights_only=True)["extra_state"]["best"] == max(scores)
    folder = tmp_path / "run"
    folder.mkdir()
    for path in (similarity / "run").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    output = fine_tune("STS-B", similarity / "data", trained_blm, folder, "--max-epoch", 3)
    assert "Going on from" in output
    assert "after 10 updates" in output
    assert "loading pretrained model" not in output
    rows = validations(folder)
    assert [row["updates"] for row in rows] == [4, 8, 10, 12]
    best = torch.load(folder / "checkpoint_last.pt", weights_only=True)["extra_state"]["best"]
    assert best == max(row["pearson_and_spearman"] for row in rows), "what was best before the stop counts"
    output = fine_tune("STS-B", similarity / "data", trained_blm, folder, "--max-epoch", 3)
    assert "has 3 epochs already, --max-epoch is 3" in output
    data = build_sentence_data(tmp_path / "sst", "SST-2", tiny_lm_data, ROWS)
    assert "is of another fine-tuning" in fine_tune("SST-2", data, trained_blm, folder, check=False)


def test_a_classification_and_the_table(similarity, tiny_lm_data, trained_blm, tmp_path):
    data = build_sentence_data(tmp_path / "data", "CoLA", tiny_lm_data, ROWS)
    # both load the pretrained model, and the correlation is that of the predictions of both
    output = fine_tune("CoLA", data, trained_blm, tmp_path / "run", "--max-update", 8, processes=2)
    assert "(8 sequences in each of 2 processes, 1 times)" in output
    note = {"task": "CoLA", "metric": "mcc", "start": str(trained_blm), "seed": 1, "rows": ROWS}
    note["dictionary_sha256"] = file_sha256(tiny_lm_data / "dict.txt")
    assert json.loads((tmp_path / "run/finetune.json").read_text()) == note
    other = fine_tune("CoLA", data, "none", tmp_path / "run", check=False)
    assert "is of another fine-tuning" in other, "it began from other weights"
    best = max(row["mcc"] for row in validations(tmp_path / "run"))
    assert best > 30, "a sentence with or without 'and' should be easy to tell"
    runs = [f"t2={tmp_path}/run", f"t2={similarity}/run"]
    output = run_cli("analysis/transnormer/glue.py", *runs, "--published", "--out", tmp_path / "table").stdout
    table = (tmp_path / "table.md").read_text()
    assert table in output
    header, _, ours, *published = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()[:11]]
    assert header == ["model", "MNLI-m", "MNLI-mm", "QNLI", "QQP", "SST-2", "MRPC", "CoLA", "mean", "STS-B", "mark"]
    similar = max(row["pearson_and_spearman"] for row in validations(similarity / "run"))
    assert ours == ["t2", *"------", f"{best:.2f}", "-", f"{similar:.2f}", "ours"]
    scores_of_t2 = ["77.28", "78.53", "85.39", "88.56", "90.71", "85.06", "45.90", "78.78"]
    assert published[-1] == ["TransNormer t2 (published)", *scores_of_t2, "-", "mean [2nd]; rest [rec]"]
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    spread = {"std": None, "low": best, "high": best, "n": 1, "mark": None}
    assert rows[0] == {"model": "t2", "column": "CoLA", "metric": "mcc", "mean": best} | spread
    assert {r["mark"] for r in rows if "published" in r["model"]} == {"[2nd]", "[rec]"}


def test_the_recipe_of_a_task(tiny_lm_data, trained_blm, tmp_path):
    rows = {"train": 2, "valid": 2, "valid1": 2}
    data = build_sentence_data(tmp_path / "data", "MNLI", tiny_lm_data, rows)
    env = PAPER | {"GPUS": 4, "SEED": 3}
    output = run_cli("scripts/finetune_glue.sh", "mnli", data, "none", "--encoder-layers", 4, env=env).stdout
    assert "Batch: 32 sequences x up to 512 tokens = up to 16384 tokens per update (8 sequences in each of 4" in output
    command = output[output.index("fairseq-train") :]
    for flags in (
        "--max-positions 512 --shorten-method truncate --valid-subset valid\\,valid1 ",
        "--num-classes 3 --init-token 0 --separator-token 2 --arch roberta_transnormer_t2 ",
        r"--adam-betas \(0.9\,\ 0.98\) --adam-eps 1e-06 --weight-decay 0.1 --clip-norm 0.0 --lr 1e-5 ",
        "--warmup-updates 7432 --max-update 123873 --total-num-update 123873 --max-epoch 10 --seed 3 ",
        "--best-checkpoint-metric accuracy --maximize-best-checkpoint-metric ",
        "--save-dir checkpoints/glue/MNLI/seed3 ",
    ):
        assert flags in command
    assert command.strip().endswith("--encoder-layers 4")
    assert "finetune-from-model" not in command


def test_a_task_that_cannot_be_trained_is_refused(tiny_lm_data, trained_blm, tmp_path):
    data = build_sentence_data(tmp_path / "data", "RTE", tiny_lm_data, {"train": 2, "valid": 2})
    assert fine_tuning.fine_tuning("rte", data).task == "RTE"
    with pytest.raises(ValueError, match=r"'RTX' is no task of GLUE \(MNLI, .*has no tokenizer\.json"):
        fine_tuning.fine_tuning("RTX", data)
    with pytest.raises(FileNotFoundError, match="no data folder"):
        fine_tuning.fine_tuning("RTE", tmp_path / "gone")
    (data / "input1/valid.idx").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks input1/valid\.idx; it has: input0, input1, label"):
        fine_tuning.fine_tuning("RTE", data)
    (data / "tokenizer.json").write_text(
        json.dumps({"kind": "words", "task": "MNLI", "metric": "accuracy", "inputs": 2, "train_args": []})
    )
    with pytest.raises(ValueError, match="holds the task MNLI, not RTE"):
        fine_tuning.fine_tuning("RTE", data)
    state = read_state(trained_blm)
    words = (tiny_lm_data / "dict.txt").read_text().splitlines()
    (data / "input0/dict.txt").write_text("\n".join(reversed(words)) + "\n")
    with pytest.raises(ValueError, match="other symbols or another order; prepare the task with --like"):
        fine_tuning.check_dictionary(trained_blm, state, data)
    (data / "input0/dict.txt").write_text("\n".join(words[:10]) + "\n")
    state["cfg"].task.data = "gone"
    with pytest.raises(ValueError, match=r"trained with 73 symbols, .*has 15; prepare the task with --like"):
        fine_tuning.check_dictionary(trained_blm, state, data)
    output = run_cli("scripts/finetune_glue.sh", "RTE", data, tmp_path / "x.pt", env=SCRIPT_ENV, check=False).stdout
    assert "no checkpoint" in output
    assert "'none' starts from random weights" in output


def test_the_model_of_a_checkpoint_is_said_in_flags(trained_blm):
    model = load_run(trained_blm).cfg.model
    assert fine_tuning.model_flags(trained_blm, model) == ["--arch", "transnormer_mlm_tiny"]
    model.encoder_layers, model.block_size, model.pre_norm, model.local_act = 3, 16, True, "relu"
    assert fine_tuning.model_flags(trained_blm, model) == [
        "--arch",
        "transnormer_mlm_tiny",
        "--encoder-layers=3",
        "--local-act=relu",
        "--pre-norm",
    ]
    model._name = "roberta_base"
    with pytest.raises(ValueError, match="'roberta_base' does not say its options in a dataclass"):
        fine_tuning.model_flags(trained_blm, model)


# --- the hub interface on what the scripts leave


def test_hub_from_a_folder_of_the_scripts(trained_blm, tiny_lm_data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*gone\.pt; beside it: .*checkpoint_best\.pt"):
        TransNormerMLM.from_pretrained(str(trained_blm.parent), "gone.pt", str(tiny_lm_data))
    with pytest.raises(FileNotFoundError, match=r"no dict\.txt in the data folder .*; name the folder"):
        TransNormerMLM.from_pretrained(str(trained_blm.parent))
    hub = TransNormerMLM.from_pretrained(str(trained_blm.parent), data_name_or_path=str(tiny_lm_data))
    assert hub.extract_features(torch.tensor([0, 5, 6, 2])).shape == (1, 4, 64)
    with pytest.raises(ValueError, match="without a tokenisation"):  # fairseq-preprocess leaves no note of one
        hub.encode("the old king")


@pytest.mark.parametrize(("kind", "size"), [("sentencepiece", 70), ("words", None)])
def test_hub_fills_masks_by_the_tokenisation_of_the_data_folder(kind, size, tmp_path):
    corpus = Corpus("sentences", {"train": sentences(80, 0), "valid": ["a"], "test": ["b"]}.__getitem__)
    build(corpus, tmp_path / "data", Tokenization(kind, size))
    flags = ["--max-update", 2, *BLM_FLAGS, "--disable-validation"]
    run_cli("scripts/train_blm.sh", tmp_path / "data", *flags, env=blm_env(tmp_path / "run"))
    hub = TransNormerMLM.from_pretrained(str(tmp_path / "run"), "checkpoint_last.pt", str(tmp_path / "data"))
    assert hub.decode(hub.encode("the old king loves")) == "the old king loves"
    assert hub.decode(hub.encode("the king", "a letter")) == ["the king", "a letter"]
    found = hub.fill_mask("the old <mask> loves", topk=5)
    assert len(found) == 5
    for text, probability, piece in found:
        assert 0 < probability < 1
        assert text == "the old" + (f" {piece}" if kind == "words" else piece) + " loves"
