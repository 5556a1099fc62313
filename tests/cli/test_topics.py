"""The topic language as a data folder, through its script, and as the task reads it."""

from itertools import groupby

import pytest
import torch
from fairseq.data import Dictionary, data_utils
from omegaconf import OmegaConf

from fairseq_transnorm.data import topics
from fairseq_transnorm.data.folder import read_note
from fairseq_transnorm.tasks.bert_sop_lm import BertSopLMConfig, BertSopLMTask
from tests.helpers import run_cli


def test_the_folder_holds_documents_of_one_sequence_of_one_topic(tmp_path):
    output = run_cli("preprocessing/topics.py", "--train", 200, "--valid", 20, "--out", tmp_path / "data").stdout
    assert "72 symbols" in output  # 64 words, fairseq's four, and four to fill up
    note = read_note(tmp_path / "data")
    assert (note["kind"], note["documents"], note["seed"], note["splits"]["valid"]["lines"]) == ("words", True, 1, 40)
    assert [facts["documents"] for facts in note["splits"].values()] == [200, 20, 20]
    dictionary = Dictionary.load(str(tmp_path / "data/dict.txt"))
    lines = data_utils.load_indexed_dataset(str(tmp_path / "data/train"), dictionary)
    text = [dictionary.string(lines[i]).split() for i in range(len(lines))]
    assert [bool(words) for words, _ in groupby(text, key=bool)] == [True, False] * 200
    assert text[::2] == [line.split() for line in topics.sequences(200, "1/train")]
    cfg = OmegaConf.structured(BertSopLMConfig)
    cfg.update({"data": str(tmp_path / "data"), "masked_lm_only": True, "seed": 1})
    cfg.update({"tokens_per_sample": 18, "max_ngram": 1, "short_seq_prob": 0})
    task = BertSopLMTask.setup_task(cfg)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    assert len(dataset) == 20
    for i in range(20):
        sample = dataset[i]
        masked = sample["target"] != dictionary.pad()
        assert int(masked.sum()) == 2  # the largest whole number below 15 % of 16
        words = dictionary.string(torch.where(masked, sample["target"], sample["src_tokens"])[1:-1]).split()
        assert words in [line.split() for line in topics.sequences(20, "1/valid")]


def test_sequences_have_one_topic_and_all_words():
    lines = [line.split() for line in topics.sequences(400, "7")]
    assert all(len(words) == 16 for words in lines)
    assert all(len({word.split("w")[0] for word in words}) == 1 for words in lines)
    assert len({word for words in lines for word in words}) == 64
    assert lines == [line.split() for line in topics.sequences(400, "7")]
    assert lines != [line.split() for line in topics.sequences(400, "8")]


@pytest.mark.parametrize(("sizes", "option"), [((0, 5), "--train 0"), ((5, 0), "--valid 0")])
def test_empty_splits_are_refused(sizes, option):
    with pytest.raises(ValueError, match=f"{option}: at least 1 sequence"):
        topics.corpus(*sizes, seed=1)
