"""Loading what fairseq-train wrote: the model, and a clear word about everything that can be wrong."""

import argparse
import shutil
from fractions import Fraction

import pytest
import torch
from fairseq import tasks
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.tasks.masked_lm import MaskedLMConfig
from omegaconf import OmegaConf

from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.text import token_windows
from fairseq_transnorm.models.transnormer.lm import TransNormerLM


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained)


def test_a_checkpoint_gives_model_config_task_and_updates(run, trained):
    assert isinstance(run.model, TransNormerLM)
    assert not run.model.training
    assert run.updates == 150
    assert run.cfg.model._name == "transnormer_lm_tiny"
    assert len(run.task.source_dictionary) == run.model.decoder.embed_tokens.num_embeddings
    saved = torch.load(trained)["model"]
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), saved[name], rtol=0, atol=0)


def test_the_data_folder_can_be_replaced(trained, tiny_lm_data, tmp_path):
    shutil.copytree(tiny_lm_data, tmp_path / "elsewhere")
    assert load_run(trained, data=tmp_path / "elsewhere").cfg.task.data == str(tmp_path / "elsewhere")


def test_missing_checkpoints(trained, tmp_path):
    (tmp_path / "checkpoint_best.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"gone\.pt is not there; .* holds \['checkpoint_best\.pt'\]"):
        load_run(tmp_path / "gone.pt")
    with pytest.raises(FileNotFoundError, match="is a folder, not a checkpoint"):
        load_run(trained.parent)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_checkpoints(trained, tmp_path, share):
    content = trained.read_bytes()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.pt \([\d,]+ bytes\) is truncated or no checkpoint"):
        load_run(cut)


@pytest.mark.parametrize("content", [{"model": {}}, torch.ones(3), {"model": {}, "cfg": None, "args": None}])
def test_files_of_torch_that_are_not_fairseqs(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is not a fairseq checkpoint"):
        load_run(tmp_path / "other.pt")


def test_objects_that_could_run_code_are_refused(trained, tmp_path):
    torch.save({**torch.load(trained), "extra": Fraction(1, 2)}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"safe loader refuses .*fractions\.Fraction"):
        load_run(tmp_path / "old.pt")


def test_options_of_models_without_a_config(trained, tiny_lm_data, tmp_path):
    """fairseq's roberta has a Namespace of options in its checkpoints, which torch's safe loader does not know."""
    task = {"_name": "masked_lm", "data": str(tiny_lm_data), "tokens_per_sample": 32}
    sizes = {"layers": 1, "embed_dim": 16, "ffn_embed_dim": 16, "attention_heads": 2}
    options = argparse.Namespace(_name="roberta", arch="roberta", **{f"encoder_{k}": v for k, v in sizes.items()})
    ARCH_CONFIG_REGISTRY["roberta"](options)
    model = tasks.setup_task(OmegaConf.merge(MaskedLMConfig, task)).build_model(options)
    state = torch.load(trained)
    state |= {"model": model.state_dict(), "cfg": state["cfg"] | {"model": options, "task": task}}
    torch.save(state, tmp_path / "roberta.pt")
    assert len(load_run(tmp_path / "roberta.pt").model.encoder.sentence_encoder.layers) == 1


@pytest.mark.parametrize("kind", ["model", "task"])
def test_what_nobody_registered_is_named(trained, tmp_path, kind):
    state = torch.load(trained)
    state["cfg"][kind]["_name"] = "foreign_thing"
    torch.save(state, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=f"needs the {kind} 'foreign_thing', which nobody registered"):
        load_run(tmp_path / "foreign.pt")


def test_missing_data_and_dictionary(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"was trained on the data folder .*gone, which is not here; .*--data"):
        load_run(trained, data=tmp_path / "gone")
    (tmp_path / "readme.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"lacks a dictionary .*holds \['readme\.txt'\]"):
        load_run(trained, data=tmp_path)


def test_a_dictionary_of_another_size(trained, tiny_lm_data, tmp_path):
    lines = (tiny_lm_data / "dict.txt").read_text().splitlines()
    (tmp_path / "dict.txt").write_text("\n".join(lines[:10]) + "\n")
    with pytest.raises(ValueError, match=rf"{len(lines) + 4} symbols|{len(lines) + 4} words|dictionary") as error:
        load_run(trained, data=tmp_path)
    assert "14" in str(error.value), "the size of the dictionary that was given"
    assert str(len(lines) + 4) in str(error.value), "and of the one that the model was trained with"


def test_a_device_that_is_not_there(trained):
    with pytest.raises(ValueError, match=r"device 'meto' cannot be used here .*try cpu"):
        load_run(trained, device="meto")


def test_windows_are_consecutive_text(run, tiny_lm_data):
    words = [line.split() for line in (tiny_lm_data.parent / "valid.txt").read_text().splitlines()]
    text = " ".join(word for line in words for word in [*line, "</s>"])
    windows = token_windows(run, "valid", length=13, count=8, seed=1)
    assert windows.shape == (8, 13)
    dictionary = run.task.source_dictionary
    for row in windows:
        assert " ".join(dictionary[i] for i in row) in text
    assert len({tuple(row.tolist()) for row in windows}) > 1
    assert torch.equal(windows, token_windows(run, "valid", length=13, count=8, seed=1))
    assert not torch.equal(windows, token_windows(run, "valid", length=13, count=8, seed=2))


def test_all_windows_together_are_the_split(run, tiny_lm_data):
    stream = (tiny_lm_data.parent / "valid.txt").read_text().replace("\n", " </s> ").split()
    windows = token_windows(run, "valid", length=7, count=len(stream) // 7, seed=0)
    dictionary = run.task.source_dictionary
    assert [dictionary[i] for i in windows.flatten()] == stream[: len(stream) // 7 * 7]


@pytest.mark.parametrize(
    ("kind", "split", "length", "count", "message"),
    [
        (ValueError, "valid", 10**6, 1, "tokens, 0 stretches of 1000000; asked for 1"),
        (ValueError, "valid", 0, 1, "must be at least 1"),
        (FileNotFoundError, "train9", 8, 1, r"no split 'train9'; it has \['test', 'train', 'valid'\]"),
    ],
)
def test_windows_that_cannot_be_had(run, kind, split, length, count, message):
    with pytest.raises(kind, match=message):
        token_windows(run, split, length, count, seed=0)
