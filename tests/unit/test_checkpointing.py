"""What the package replaces in fairseq so that a run goes on as if it had not been stopped."""

import argparse
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from fairseq_transnorm.checkpointing import save_initial  # importing the package replaces


def masked(data, epochs, workers):
    """Masked positions, by sample, in each of some epochs of a run that starts in the first of them."""
    task = MaskedLMTask.setup_task(MaskedLMConfig(data=str(data), tokens_per_sample=32, seed=1))
    task.load_dataset("valid")
    batches = task.get_batch_iterator(task.dataset("valid"), max_sentences=4, num_workers=workers, epoch=epochs[0])
    found = []
    for _ in epochs:
        targets = {}
        for sample in batches.next_epoch_itr(shuffle=True):
            for index, row in zip(sample["id"].tolist(), sample["target"], strict=True):
                targets[index] = row.ne(task.source_dictionary.pad()).nonzero().flatten().tolist()
        found.append(targets)
    return found


@pytest.mark.filterwarnings("ignore")
def test_each_epoch_has_masks_of_its_own_whoever_loads_the_data(tiny_lm_data):
    here = masked(tiny_lm_data, (1, 2), workers=0)
    assert here[0] != here[1]
    assert masked(tiny_lm_data, (1, 2), workers=1) == here, "the process that loads data stayed in the first epoch"
    assert masked(tiny_lm_data, (2,), workers=1) == here[1:], "a run that goes on in epoch 2 has other masks"


def test_numbers_of_numpy_are_saved_as_python_s(tmp_path):
    weight = torch.ones(2)
    extra = {"best": np.float64(12.5), "metrics": OrderedDict(train=[(0, "mcc", {"val": np.float32(0.5), "n": 3})])}
    extra |= {"train_iterator": {"epoch": np.int64(2)}, "tensor": weight}
    history = [{"lr_scheduler_state": {"best": np.float64(12.5)}}]
    state = {"model": {"w": weight}, "optimizer_history": history, "extra_state": extra}
    checkpoint_utils.torch_persistent_save(state, str(tmp_path / "c.pt"))
    got = torch.load(tmp_path / "c.pt", weights_only=True)
    assert got["extra_state"] == {
        "best": 12.5,
        "metrics": {"train": [(0, "mcc", {"val": 0.5, "n": 3})]},
        "train_iterator": {"epoch": 2},
        "tensor": got["extra_state"]["tensor"],
    }
    assert got["optimizer_history"] == [{"lr_scheduler_state": {"best": 12.5}}]
    assert torch.equal(got["extra_state"]["tensor"], weight)
    assert type(extra["best"]) is np.float64, "what the training holds stays as it is"


def test_options_of_sgd_and_adafactor_do_not_keep_a_run_from_going_on(tmp_path):
    """fairseq's optimisers without a config have theirs in a Namespace, which torch's safe loader refuses."""
    cfg = {"optimizer": argparse.Namespace(_name="adafactor", scale_parameter=True)}
    state = {"args": None, "cfg": cfg, "model": {}, "extra_state": {"train_iterator": {"epoch": 1}}}
    torch.save(
        state | {"optimizer_history": [{"num_updates": 3, "optimizer_name": "x", "lr_scheduler_state": {}}]},
        tmp_path / "c.pt",
    )
    state = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "c.pt"))
    assert state["cfg"].optimizer.scale_parameter is True
    torch.save({"cfg": {"optimizer": subprocess.Popen}}, tmp_path / "c.pt")
    with pytest.raises(pickle.UnpicklingError, match="Popen"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "c.pt"))


def test_the_initial_checkpoint_of_an_older_run_is_kept_under_another_name(tmp_path):
    path = tmp_path / "checkpoint_init.pt"
    path.write_text("older")
    (tmp_path / "checkpoint_init.pt.old").write_text("oldest")
    trainer = SimpleNamespace(cfg=SimpleNamespace(checkpoint=SimpleNamespace(save_dir=str(tmp_path))))
    trainer.checkpoint_suffix, trainer.consolidate_optimizer = "", lambda: None
    trainer.save_checkpoint = lambda name, _: Path(name).write_text("new")
    trainer.should_save_checkpoint_on_current_rank = True
    save_initial(trainer)
    assert (path.read_text(), (tmp_path / "checkpoint_init.pt.old2").read_text()) == ("new", "older")
    assert (tmp_path / "checkpoint_init.pt.old").read_text() == "oldest"
