"""The log of probes: its file, the criterion whose sums it has, and an update that has to be made again."""

import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.dataclass.configs import FairseqConfig
from fairseq.logging import metrics
from omegaconf import OmegaConf

from fairseq_transnorm.criterions.bigram_icl import BigramICLCriterion, BigramICLCriterionConfig
from fairseq_transnorm.measure.probe_log import ProbeLog, read_probes
from fairseq_transnorm.tasks.bigram_icl import BigramICLConfig, BigramICLTask
from tests.birth_reference import T, V, build
from tests.helpers import ROOT


def line(updates, split=None, **values):
    return {"iter": updates, "epoch": 1, "wall": 0.5, "acc_end": None} | ({"split": split} if split else {}) | values


def write(path, records, rest=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + rest)


def test_a_run_that_goes_on_notes_its_first_update_again_but_not_its_last_validation(tmp_path):
    path = tmp_path / "probes.jsonl"
    records = [line(0), line(2), line(4, "valid"), line(4), line(6), line(6, "valid")]
    write(path, records, '{"iter": 8, "ep')
    log = ProbeLog(path, updates=4)
    assert read_probes(path) == records[:3]
    log.write(line(4, acc_end=0.5))
    assert read_probes(tmp_path) == [*records[:3], line(4, acc_end=0.5)]


def test_a_new_run_keeps_the_file_of_an_older_one_under_another_name(tmp_path):
    path = tmp_path / "probes.jsonl"
    for number, old in enumerate(("probes.jsonl.old", "probes.jsonl.old2", "probes.jsonl.old3")):
        path.write_text(f"junk {number}\n")
        ProbeLog(path, updates=0).write(line(number))
        assert (tmp_path / old).read_text() == f"junk {number}\n"
        assert read_probes(path) == [line(number)]
    assert (tmp_path / "probes.jsonl.old").read_text() == "junk 0\n", "the first is still there"


def test_a_cut_line_goes_where_all_whole_ones_stay(tmp_path):
    path = tmp_path / "probes.jsonl"
    write(path, [line(0), line(2)], '{"iter": 4, "ep')
    ProbeLog(path, updates=4).write(line(4))
    assert read_probes(path) == [line(0), line(2), line(4)]


def test_the_last_of_several_lines_of_an_update_counts(tmp_path, caplog):
    path = tmp_path / "mine.jsonl"
    lines = [line(0), line(2, x=1), line(2, "valid"), line(2, "test"), line(4), line(2, x=2), line(2, "valid", x=3)]
    write(path, lines, '{"iter"')
    with caplog.at_level(logging.WARNING):
        assert read_probes(path) == [line(0), line(2, x=2), line(2, "valid", x=3), line(2, "test"), line(4)]
    assert "line 8 is cut off" in caplog.text


@pytest.mark.parametrize(
    "bad",
    [
        "broken",
        "[]",
        '{"acc_end": 1}',
        '{"iter": "100", "acc_end": 1}',
        '{"iter": 0}',
        '{"iter": 1, "acc_end": 1, "wo1_acc": "high"}',
    ],
)
def test_a_damaged_file_is_refused(tmp_path, bad):
    path = tmp_path / "probes.jsonl"
    write(path, [line(0)], bad + "\n")
    for use in (read_probes, lambda path: ProbeLog(path, updates=1)):
        with pytest.raises(ValueError, match=r"probes\.jsonl: line 2 is no record of probes: .* move the file away"):
            use(path)


def test_without_records_the_reader_says_what_is_there(tmp_path):
    (tmp_path / "train.log").touch()
    with pytest.raises(FileNotFoundError, match=r"\['train.log'\]; train with .* --log-probes"):
        read_probes(tmp_path)
    (tmp_path / "probes.jsonl").touch()
    with pytest.raises(ValueError, match="holds no record"):
        read_probes(tmp_path)


def criterion(**options):
    cfg = OmegaConf.structured(BigramICLCriterionConfig(**options))
    return BigramICLCriterion(cfg, SimpleNamespace(target_dictionary=None))


def batch(rows, seed, counters=None):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, V, (rows, T + 1), generator=generator)
    counters = torch.randint(0, 4, (rows, T), generator=generator) if counters is None else counters
    net_input = {"src_tokens": tokens[:, :-1], "src_lengths": torch.full((rows,), T)}
    return {
        "net_input": net_input,
        "target": tokens[:, 1:],
        "counters": counters,
        "ntokens": rows * T,
        "nsentences": rows,
    }


def shown(logs):
    with metrics.aggregate(new_root=True) as found:
        for log in logs:
            BigramICLCriterion.reduce_metrics([log])
    return dict(found.get_smoothed_values())


@pytest.mark.parametrize("head_only", [False, True])
def test_the_loss_is_a_sum_over_positions_and_its_gradient_that_of_the_mean(head_only):
    model, sample = build().float(), batch(4, seed=1)
    loss, size, _ = criterion(loss_head_only=head_only)(model, sample)
    kept = sample["counters"] >= (2 if head_only else -1)
    logits = model(**sample["net_input"])[0]
    mean = F.cross_entropy(logits[kept], sample["target"][kept])
    assert int(size) == int(kept.sum())
    torch.testing.assert_close(loss / size, mean)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(loss / size, parameters), torch.autograd.grad(mean, parameters), strict=True):
        torch.testing.assert_close(a, b)


def test_metrics_are_ratios_over_all_batches_in_bits_and_shares():
    model, parts = build(), [batch(1, seed=2), batch(5, seed=3)]
    measure = criterion(log_probes=True).eval()
    whole = {name: torch.cat([part[name] for part in parts]) for name in ("target", "counters")}
    whole["net_input"] = {"src_tokens": torch.cat([part["net_input"]["src_tokens"] for part in parts])}
    values = shown([measure(model, part)[2] for part in parts])
    logits = model(**whole["net_input"])[0]
    known, right = whole["counters"] >= 2, logits.argmax(-1) == whole["target"]
    assert values["acc_end"] == int((known & right).sum()) / int(known.sum())
    nats = F.cross_entropy(logits.flatten(0, 1).float(), whole["target"].flatten(), reduction="none").view_as(known)
    assert values["loss"] == pytest.approx(float(nats.mean()) / math.log(2), rel=1e-6)
    assert values["loss_head"] == pytest.approx(float(nats[known].mean()) / math.log(2), rel=1e-6)
    assert {"score_acc", "score2_acc", "pred_attended_acc", "repeat_frac"} <= set(values)
    assert all(isinstance(value, float) for value in values.values())


@pytest.mark.parametrize("head_only", [False, True])
def test_sets_of_no_position_leave_no_metric_and_no_gradient(head_only):
    model, none = build(), torch.zeros(2, T, dtype=torch.int64)
    loss, size, log = criterion(loss_head_only=head_only, log_probes=True)(model, batch(2, seed=4, counters=none))
    values = shown([log, log])
    assert set(values) == {"loss", "loss_bigram"}
    assert all(isinstance(log[name], torch.Tensor | int) for name in log)
    if head_only:
        assert (values["loss"], float(loss), int(size)) == (0.0, 0.0, 0)
        loss.backward()
        assert all(not p.grad.any() for p in model.parameters() if p.requires_grad)
    some = criterion(loss_head_only=head_only)(model, batch(2, seed=5))[2]
    if head_only:
        assert shown([log, some])["loss"] == shown([some])["loss"], "an empty batch has no weight"


def test_batches_of_another_task_are_refused():
    sample = batch(1, seed=7)
    del sample["counters"]
    with pytest.raises(ValueError, match="criterion bigram_icl needs --task bigram_icl"):
        criterion()(build(), sample)


def test_the_attention_is_looked_at_where_it_is_its_turn():
    measure, sample, model = criterion(log_probes=True, probe_interval=3), batch(1, seed=6), build()
    for updates in range(5):
        measure.set_num_updates(updates)
        assert ("attention_sums" in measure(model, sample)[2]) == (updates % 3 == 0)
    assert "attention_sums" in measure.eval()(model, sample)[2]
    assert "attention_sums" not in criterion().eval()(model, sample)[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe_interval": 0}, "--probe-interval 0: 1 or more"),
        ({"probe_position_cutoff": -1}, "--probe-position-cutoff -1"),
        ({"probe_file": "a/b.jsonl"}, "'a/b.jsonl' is no name of a file"),
        ({"probe_file": ""}, "'' is no name"),
        ({"probe_file": ".."}, "'..' is no name"),
        ({"probe_file": ".jsonl"}, "'.jsonl' is no name"),
        ({"probe_file": "checkpoint_last.pt"}, "'checkpoint_last.pt' is no name .* that ends in .jsonl; give one such"),
        ({"probe_file": "norms.jsonl"}, "--probe-file norms.jsonl is the file of another log"),
        ({"log_norms": True}, "--log-norms adds to the lines of --log-probes"),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        criterion(**options)


def started(tmp_path, processes_number=0, metric="loss", data=None, **options):
    """A task after the start of its training, its criterion and its model."""
    values = {"corpus": str(ROOT / "tests/data/lighthouse.txt"), "tokens_per_sample": T, "valid_sequences": 4}
    values |= {"num_triggers": 3} | (data or {})
    task = BigramICLTask.setup_task(OmegaConf.structured(BigramICLConfig(**values)))
    task.load_dataset("valid")
    model = build(tokens_per_sample=T)
    model.embed_tokens = torch.nn.Embedding(len(task.dictionary), 8).double()
    model.output = torch.nn.Linear(8, len(task.dictionary), bias=False).double()
    cfg = OmegaConf.structured(FairseqConfig())
    cfg.dataset.batch_size = 3
    cfg.checkpoint.save_dir, cfg.checkpoint.best_checkpoint_metric = str(tmp_path), metric
    settings = {"_name": "bigram_icl", "log_probes": True, "probe_interval": 2, **options}
    cfg.criterion = OmegaConf.structured(BigramICLCriterionConfig(**settings))
    trainer = SimpleNamespace(cfg=cfg, get_model=lambda: model, is_data_parallel_master=processes_number == 0)
    trainer.get_num_updates = lambda: 0
    task.begin_epoch(1, model)
    task.begin_training(trainer)
    return task, BigramICLCriterion(cfg.criterion, task), model


class Optimizer:
    """Changes all weights a lot."""

    def __init__(self, model):
        self.model = model

    def backward(self, loss):
        loss.backward()

    def step(self):
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(-3.0)


def update(task, measure, model, number, times=1):
    """One update as fairseq makes it; with mixed precision it may have to make it again with the same number."""
    sample = task.datasets["valid"].collater([task.datasets["valid"][0]])
    with metrics.aggregate(new_root=True) as found:
        for _ in range(times):
            log = task.train_step(sample, model, measure, Optimizer(model), number)[2]
            task.optimizer_step(Optimizer(model), model=model, update_num=number)
        task.reduce_metrics([log], measure)
    return found.get_smoothed_values()


def test_a_line_has_what_was_before_the_update(tmp_path):
    task, measure, model = started(tmp_path, log_norms=True)
    before = float(model.layers[1].wo.weight.norm())
    values = update(task, measure, model, 0)
    (found,) = read_probes(tmp_path)
    assert found["norm_layers.1.wo.weight"] == pytest.approx(before, rel=1e-12)
    assert found["gradnorm_layers.1.wo.weight"] == pytest.approx(float(model.layers[1].wo.weight.grad.norm()))
    assert found["iter"] == 0
    assert values["wo1_acc"] == pytest.approx(found["wo1_acc"], abs=1e-4)
    assert "norm_layers.0.wv.weight" not in found, "it is never trained"


def test_an_update_that_is_made_again_has_one_line_and_others_none(tmp_path):
    task, measure, model = started(tmp_path, log_norms=True)
    for number in range(4):
        update(task, measure, model, number, times=1 + (number == 2))
    first, second = read_probes(tmp_path)
    assert (first["iter"], second["iter"]) == (0, 2)
    # each of the updates 0 and 1, and the first try at 2, makes the weights three times as long
    assert second["norm_layers.0.wk.weight"] == pytest.approx(27 * first["norm_layers.0.wk.weight"])


def test_another_process_writes_nothing(tmp_path):
    task, measure, model = started(tmp_path, processes_number=1)
    update(task, measure, model, 0)
    assert not list(tmp_path.iterdir())


def test_half_precision_has_no_gradient_norms(tmp_path):
    cfg = OmegaConf.structured(FairseqConfig())
    cfg.common.fp16 = True
    cfg.criterion = OmegaConf.structured(BigramICLCriterionConfig(_name="bigram_icl", log_probes=True, log_norms=True))
    task, _, model = started(tmp_path)
    trainer = SimpleNamespace(cfg=cfg, get_model=lambda: model, get_num_updates=lambda: 0)
    with pytest.raises(ValueError, match=r"bigram_icl: --log-norms does not go with --fp16 .* take --amp"):
        task.begin_training(trainer)
    cfg.common.fp16, cfg.distributed_training.ddp_backend = False, "fully_sharded"
    with pytest.raises(ValueError, match=r"bigram_icl: --log-probes: with --ddp-backend fully_sharded"):
        task.begin_training(trainer)


def test_a_validation_without_the_metric_that_checkpoints_are_chosen_by_is_told(tmp_path):
    task, _, model = started(tmp_path)
    task._best_metric = "acc_end"
    with pytest.raises(ValueError, match=r"--best-checkpoint-metric acc_end: .* has no such value, only loss;"):
        task.post_validate(model, {"loss": 1.0}, None)


@pytest.mark.parametrize(
    ("metric", "options", "data", "message"),
    [
        ("acc_edn", {}, {}, "acc_edn is no metric of this criterion; take one of .*acc_end, .*score2_acc, .*wo1_acc"),
        ("acc_edn", {"log_probes": False}, {}, "acc_edn is no metric .* take one of .*acc_end, repeat_frac$"),
        ("wk0_8_acc", {}, {}, "wk0_8_acc is no metric"),
        ("wo1_acc", {"log_probes": False}, {}, "wo1_acc is measured with --log-probes only"),
        ("score_acc", {"log_probes": False}, {}, "score_acc is measured with --log-probes only"),
        ("wk1_acc", {}, {"fixed_triggers": True, "num_triggers": 0}, "wk1_acc has no value for this model and these"),
        ("acc_end", {}, {"tokens_per_sample": 2}, "acc_end: no sequence of 'valid' has a trigger again; give longer"),
    ],
)
def test_a_metric_that_a_validation_will_not_have_is_refused_before_training(tmp_path, metric, options, data, message):
    with pytest.raises(ValueError, match=f"bigram_icl: --best-checkpoint-metric {message}"):
        started(tmp_path, metric=metric, data=data, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("metric", ["acc_end", "acc_tot", "loss_bigram", "score2_acc", "wo1_acc", "wk0_64_acc"])
def test_metrics_that_a_validation_has_are_taken(tmp_path, metric):
    started(tmp_path, metric=metric)
