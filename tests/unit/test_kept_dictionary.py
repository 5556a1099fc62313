"""Checkpoints tell the dictionary of their training, and another one of the same size is refused."""

import shutil

import pytest
import torch
from fairseq import options, tasks
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer

import fairseq_transnorm  # noqa: F401  (registers)
from fairseq_transnorm.data.classification import Task
from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.fine_tuning import check_dictionary
from tests.documents import build_document_data

TASK = Task("single", 1, ("0", "1"), layout="bert")


def trainer(*flags):
    """A trainer of fairseq's as fairseq-train makes it."""
    parser = options.get_training_parser()
    flags = [*flags, "--arch", "dslm_bert_tiny", "--encoder-layers", 2, "--optimizer", "adam", "--lr", 0.1, "--cpu"]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, list(map(str, flags))))
    task = tasks.setup_task(cfg.task)
    return Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


def pretraining(data):
    return trainer(data, "--task", "bert_sop_lm", "--criterion", "bert_sop", "--word-kind", "words")


def fine_tuning(folder, dictionary):
    (folder / "input0").mkdir(parents=True)
    (folder / "label").mkdir()
    (folder / "label/dict.txt").write_text("0 1\n1 1\n")
    (folder / "input0/dict.txt").write_text(dictionary)
    return trainer(folder, *TASK.train_args())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``data`` and ``turned``, with the same symbols in another order, and a checkpoint of the first one."""
    folder = tmp_path_factory.mktemp("kept")
    build_document_data(folder / "data", {"train": 10, "valid": 10})
    shutil.copytree(folder / "data", folder / "turned")
    lines = (folder / "data/dict.txt").read_text().splitlines()
    (folder / "turned/dict.txt").write_text("\n".join(reversed(lines)) + "\n")
    run = pretraining(folder / "data")
    run.consolidate_optimizer()
    run.save_checkpoint(str(folder / "c.pt"), {"train_iterator": {"epoch": 1}})
    return folder


def test_pretraining_does_not_go_on_with_another_dictionary(folder):
    path = str(folder / "c.pt")
    pretraining(folder / "data").load_checkpoint(path)
    message = rf"dictionary mismatch: {path} was trained with .* than that in {folder}/turned; give the data folder"
    with pytest.raises(ValueError, match=message):
        pretraining(folder / "turned").load_checkpoint(path)
    load_checkpoint_to_cpu(path)
    assert load_run(path).updates == 0
    with pytest.raises(
        ValueError, match=r"dictionary mismatch: the checkpoint was trained with .*/turned; give the data"
    ):
        load_run(path, folder / "turned")


def test_fine_tuning_compares_as_well(folder, tmp_path):
    path, state = folder / "c.pt", torch.load(folder / "c.pt", weights_only=True)
    with pytest.raises(ValueError, match=r"dictionary mismatch: .*/c\.pt was trained with"):
        fine_tuning(tmp_path / "turned", (folder / "turned/dict.txt").read_text()).load_checkpoint(str(path), True)
    good = fine_tuning(tmp_path / "good", (folder / "data/dict.txt").read_text())
    good.load_checkpoint(str(path), True)
    assert good.task.state_dict() == state["task_state"], "a fine-tuned model can be fine-tuned again"


def test_the_folder_of_pretraining_is_not_needed(folder, tmp_path):
    state = load_checkpoint_to_cpu(str(folder / "c.pt"))
    state["cfg"].task.data = "gone"
    for name in ("data", "turned"):
        (tmp_path / name / "input0").mkdir(parents=True)
        shutil.copyfile(folder / name / "dict.txt", tmp_path / name / "input0/dict.txt")
    check_dictionary(folder / "c.pt", state, tmp_path / "data")
    with pytest.raises(
        ValueError, match=r"c\.pt was trained with other symbols, or in another order, .*--like the data"
    ):
        check_dictionary(folder / "c.pt", state, tmp_path / "turned")
    del state["task_state"]
    check_dictionary(folder / "c.pt", state, tmp_path / "turned")  # an older one, and nothing tells
