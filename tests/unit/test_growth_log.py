"""The record of norm growth: its file, what it refuses, and what an update that fails leaves behind."""

import dataclasses
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.dataclass.configs import FairseqConfig
from fairseq.logging import metrics
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.optim import OPTIMIZER_DATACLASS_REGISTRY
from fairseq.optim.lr_scheduler import LR_SCHEDULER_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY, FairseqTask
from fairseq.tasks.language_modeling import LanguageModelingConfig
from omegaconf import OmegaConf
from torch import nn

from fairseq_transnorm.criterions.bigram_icl import BigramICLCriterionConfig
from fairseq_transnorm.measure.growth_log import GrowthLog, read_growth
from fairseq_transnorm.measure.hidden_states import HiddenStates
from fairseq_transnorm.measure.saturation import mean_pair_cosine, token_cosines
from fairseq_transnorm.measure.scaling import ScaledNetwork
from fairseq_transnorm.tasks.growth_log import GrowthLogConfig, GrowthLogMixin, check, check_trainer
from fairseq_transnorm.tasks.normgrowth_lm import NormGrowthLMTaskConfig
from fairseq_transnorm.tasks.step_recorder import StepRecorder
from fairseq_transnorm.tasks.valid_saturation import ValidSaturation


def record(updates, scope="layers"):
    return {"updates": updates, "scope": scope, "norm": 1.5 + updates}


def write(path, records, rest=""):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in records) + rest)


def test_a_run_that_goes_on_cuts_off_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "norms.jsonl"
    write(path, map(record, (0, 2, 4, 6)), '{"updates": 8, "no')
    log = GrowthLog(path, updates=5, scope="layers")
    assert log.last == 4
    log.write(record(6))
    assert read_growth(tmp_path) == [*map(record, (0, 2, 4, 6))]


def test_a_new_run_keeps_the_file_of_an_older_one_under_another_name(tmp_path, caplog):
    path = tmp_path / "norms.jsonl"
    for text, old in (("junk\n", "norms.jsonl.old"), (json.dumps(record(3)) + "\n", "norms.jsonl.old2")):
        path.write_text(text)
        with caplog.at_level(logging.WARNING):
            log = GrowthLog(path, updates=0, scope="all")
        assert log.last is None
        assert (tmp_path / old).read_text() == text
        log.write(record(0))
        assert read_growth(path) == [record(0)]
    assert f"{path} was there, of an older run: renamed to norms.jsonl.old2" in caplog.text


def test_a_full_disk_is_told_with_the_file(tmp_path):
    (tmp_path / "norms.jsonl").symlink_to("/dev/full")
    log = GrowthLog(tmp_path / "norms.jsonl", updates=0, scope="layers")
    with pytest.raises(OSError, match=r"norms\.jsonl: the record of update 3 .* No space left .* the last checkpoint"):
        log.write(record(3))


def test_another_scope_is_not_mixed_in_unless_nothing_is_kept(tmp_path):
    path = tmp_path / "norms.jsonl"
    write(path, [record(1)])
    with pytest.raises(ValueError, match="of the scope 'layers', the run goes on with --norm-scope all"):
        GrowthLog(path, updates=1, scope="all")
    assert GrowthLog(path, updates=0, scope="all").last is None


def test_a_line_that_a_kill_cut_off_is_left_out_and_named(tmp_path, caplog):
    write(tmp_path / "norms.jsonl", map(record, (0, 1)), json.dumps(record(2)))
    with caplog.at_level(logging.WARNING):
        assert read_growth(tmp_path) == [record(0), record(1)]
    assert "line 3 is cut off" in caplog.text


@pytest.mark.parametrize(
    ("records", "rest", "message"),
    [
        ([record(0)], "broken\n", "line 2 is no record of a norm: 'broken'"),
        ([record(3), record(3)], "", "line 2 has update 3 after update 3; did two runs"),
        ([], "", "holds no record"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, records, rest, message):
    write(tmp_path / "norms.jsonl", records, rest)
    with pytest.raises(ValueError, match=message):
        read_growth(tmp_path)


def test_without_a_file_the_reader_says_what_is_there(tmp_path):
    (tmp_path / "train.log").touch()
    with pytest.raises(FileNotFoundError, match=r"\['train.log'\]; train with --norm-log-interval"):
        read_growth(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_log_interval": -1}, "--norm-log-interval -1: 0 .none. or more"),
        ({"sat_max_sentences": -2}, "--sat-max-sentences -2"),
        ({"sat_factor": 1.0}, "--sat-factor 1: more than 1"),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check(OmegaConf.structured(GrowthLogConfig(_name="some_task", **options)))


@pytest.mark.parametrize(
    ("group", "option", "value", "message"),
    [
        ("common", "fp16", True, "--fp16 and --bf16: .* take --amp"),
        ("common", "bf16", True, "take --amp"),
        ("common", "quantization_config_path", "x.yaml", "--quantization-config-path"),
        ("distributed_training", "ddp_backend", "fully_sharded", "only a part of the parameters"),
        ("distributed_training", "ddp_backend", "slowmo", "--ddp-backend slowmo"),
        ("distributed_training", "zero_sharding", "os", "--zero-sharding"),
        ("optimization", "use_bmuf", True, "--use-bmuf"),
    ],
)
def test_training_whose_parameters_no_process_holds_is_refused(group, option, value, message):
    cfg = OmegaConf.structured(FairseqConfig())
    check_trainer("some_task", cfg, "--some", "--some-step")
    cfg[group][option] = value
    with pytest.raises(ValueError, match=f"^some_task: .*{message}"):
        check_trainer("some_task", cfg, "--some", "--some-step")
    if value != "fully_sharded":
        check_trainer("some_task", cfg, "--some", None)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.classifier = nn.Linear(3, 2)


class Task(GrowthLogMixin, FairseqTask):
    pass


def started(tmp_path, model, **options):
    """A task after the start of its training."""
    task = Task(OmegaConf.structured(GrowthLogConfig(_name="some_task", **options)))
    cfg = OmegaConf.structured(FairseqConfig())
    cfg.checkpoint.save_dir, cfg.checkpoint.no_save = str(tmp_path), True
    trainer = SimpleNamespace(cfg=cfg, get_model=lambda: model, get_lr=lambda: 0.5, is_data_parallel_master=True)
    trainer.get_num_updates = lambda: 0
    task.begin_epoch(1, model)
    task.begin_training(trainer)
    return task


@pytest.mark.parametrize(("processes", "most"), [(1, 9), (2, 5), (3, 3)])
def test_processes_share_the_sentences_whose_saturation_is_measured(processes, most, monkeypatch):
    monkeypatch.setattr(FairseqTask, "get_batch_iterator", lambda *_, **__: None)
    task = Task(OmegaConf.structured(GrowthLogConfig(sat_max_sentences=9)))
    task.get_batch_iterator(None, num_shards=processes)
    assert task._saturation.left == most


class Scaler:
    """Stands for fairseq's optimiser of mixed precision: gradients that overflow halve the scale and update nothing."""

    def __init__(self, parameters):
        self.parameters, self.scale, self.overflow = list(parameters), 8.0, False
        self.scaler = SimpleNamespace(get_scale=lambda: self.scale)

    def get_lr(self):
        return 0.5

    def step(self):
        self.scale /= 2 if self.overflow else 1
        with torch.no_grad():
            for parameter in self.parameters:
                if not self.overflow and parameter.grad is not None:
                    parameter -= 0.5 * parameter.grad


def test_an_update_that_overflows_leaves_no_record(tmp_path):
    torch.manual_seed(0)
    model = Net()
    task = started(tmp_path, model, norm_log_interval=1)
    optimizer = Scaler(model.parameters())
    for overflow in (True, False):
        optimizer.overflow = overflow
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        model.layers[1].weight.grad = None
        task.optimizer_step(optimizer, model=model, update_num=0)
    start, first = read_growth(tmp_path)
    assert (start["updates"], first["updates"]) == (0, 1)
    assert first["gradient_norm"] == pytest.approx((9 + 3 + 3) ** 0.5), "what has no gradient counts as 0"
    assert first["step_norm"] == pytest.approx(0.5 * first["gradient_norm"], rel=1e-6)
    assert first["gradient_product"] == pytest.approx(-first["product"] / 0.5, rel=1e-5)

    cosine = first["gradient_product"] / (start["norm"] * first["gradient_norm"])
    assert abs(first["norm"] / start["norm"] - 1) > 0.01
    assert first["gradient_cosine"] == pytest.approx(cosine, rel=1e-6), "with the norm before the update"


@pytest.mark.parametrize("interval", [1, 3])
def test_only_updates_of_the_interval_are_measured(tmp_path, interval, monkeypatch):
    model = Net()
    task = started(tmp_path, model, norm_log_interval=interval)
    copied = []
    monkeypatch.setattr(StepRecorder, "before", _noting(StepRecorder.before, copied))
    for update in range(6):
        with metrics.aggregate() as shown:
            task.optimizer_step(Scaler(model.parameters()), model=model, update_num=update)
        assert ("norm" in shown.get_smoothed_values()) == (update + 1 >= interval), "then the last one"
    assert len(copied) == 6 // interval
    assert [entry["updates"] for entry in read_growth(tmp_path)] == [*range(0, 7, interval)]


def _noting(method, calls):
    def call(self):
        calls.append(self)
        return method(self)

    return call


class Decoder(nn.Module):
    """A language model of two maps, in the interface that hidden states are read by."""

    def __init__(self):
        super().__init__()
        self.embed, self.map = nn.Embedding(9, 5), nn.Linear(5, 5)

    def forward(self, tokens, features_only, return_all_hiddens):
        x = self.embed(tokens)
        y = torch.tanh(self.map(x))
        return y, {"inner_states": [x.transpose(0, 1), y.transpose(0, 1)]}


def test_saturation_is_that_of_the_first_sentences_over_processes():
    torch.manual_seed(1)
    model = nn.Module()
    model.decoder = Decoder()
    batches = [torch.randint(2, 9, (3, 4)) for _ in range(3)]
    batches[0][0, 2:] = 1  # padding
    seen = [(batches[0], 3), (batches[1], 1), (batches[2], 0)]  # of at most 4 sentences
    states = HiddenStates(model)
    plain, far = ScaledNetwork(states, 1.0), ScaledNetwork(states, 1000.0)
    kept = [tokens[:rows] for tokens, rows in seen if rows]
    a, b = (torch.cat([network(t).encodings[t != 1] for t in kept]).double() for network in (plain, far))
    cosines = nn.functional.normalize(a, dim=-1) @ nn.functional.normalize(a, dim=-1).T
    expected = float(token_cosines(a, b).mean()), float(cosines[~torch.eye(len(a), dtype=bool)].mean())

    wrapped = nn.DataParallel(model)
    measure, other = ValidSaturation(4, 1000.0), ValidSaturation(1, 1000.0)
    with metrics.aggregate(new_root=True) as shown:
        for tokens, _ in seen:
            log = measure(wrapped, tokens, tokens != 1)
            assert all(torch.is_tensor(value) or isinstance(value, (int, float)) for value in log.values())
            measure.log([log, {"loss": 3.0}])
    values = shown.get_smoothed_values()
    assert (values["sat"], values["collapse"]) == pytest.approx(expected, abs=1e-4)

    with metrics.aggregate(new_root=True) as shown:  # the second process has the sentence of the second batch
        half = ValidSaturation(3, 1000.0)
        half.log([half(model, batches[0], batches[0] != 1), other(model, batches[1], batches[1] != 1)])
    values = shown.get_smoothed_values()
    assert (values["sat"], values["collapse"]) == pytest.approx(expected, abs=1e-4)


def test_no_other_group_has_an_option_of_the_same_name():
    """fairseq-train gives two options of one name one flag, so that a value meant for one reaches the other."""
    registries = {"model": MODEL_DATACLASS_REGISTRY, "criterion": CRITERION_DATACLASS_REGISTRY}
    registries |= {"optimizer": OPTIMIZER_DATACLASS_REGISTRY, "lr_scheduler": LR_SCHEDULER_DATACLASS_REGISTRY}
    groups = {name: {o for config in found.values() for o in names_of(config)} for name, found in registries.items()}
    own = OmegaConf.to_container(OmegaConf.structured(FairseqConfig()), resolve=False)
    groups["fairseq"] = {option for group in own.values() if isinstance(group, dict) for option in group}
    task = names_of(NormGrowthLMTaskConfig) - names_of(LanguageModelingConfig)
    assert {"norm_log_interval", "sat_factor", "pad_id"} <= task
    assert {"clip_norm", "batch_size"} <= groups["fairseq"]
    assert not {name: task & names for name, names in groups.items() if task & names}
    assert not {name for name, names in groups.items() if name != "criterion" and "target_weights" in names}
    assert not {name for name, names in groups.items() if name != "lr_scheduler" and "hold_updates" in names}
    others = set().union(*(names for name, names in groups.items() if name != "criterion"))
    others |= {option for config in TASK_DATACLASS_REGISTRY.values() for option in names_of(config)}
    assert not names_of(BigramICLCriterionConfig) & others


def names_of(config):
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else []
    return {field.name for field in fields if field.name != "_name"}


@pytest.mark.parametrize(("count", "expected"), [(1, None), (2, 1.0)])
def test_pairs_of_tokens(count, expected):
    assert mean_pair_cosine(count * torch.tensor([0.6, 0.8]), float(count), count) == (
        expected if expected is None else pytest.approx(expected)
    )
