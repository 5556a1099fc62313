"""Trajectories over folders of checkpoints: which files count, in which order, and what of them is a parameter."""

import argparse
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fairseq_transnorm.measure.checkpoint_series import collect, find_checkpoints, read_checkpoint
from fairseq_transnorm.measure.trajectory import COLUMNS, complete_rows, read_norms, scope_series, trajectory
from fairseq_transnorm.plotting import load_table, save_csv, save_table

LAYER = "decoder.layers.0.fc.weight"


def model(scale=1.0, dtype=torch.float32, rows=2):
    """A state dict with all that is no parameter; its layer is a (rows x 2) map with the entries ``scale``."""
    embeddings = torch.full((5, 2), 2.0, dtype=dtype)
    return {
        "decoder.version": torch.tensor([3.0]),
        "decoder.embed_tokens.weight": embeddings,
        "decoder.embed_positions._float_tensor": torch.ones(1),
        LAYER: torch.full((rows, 2), scale, dtype=dtype),
        "decoder.layers.0.norm.running_mean": torch.full((9,), 9.0),
        "decoder.layers.0.norm.num_batches_tracked": torch.tensor(4),
        "decoder.layers.0.mask": torch.ones(3, 3, dtype=torch.bool),
        "decoder.layers.0.scale": torch.tensor(5.0),
        "decoder.output_projection.weight": embeddings,  # tied
    }


def save(path, updates, state=None, **entries):
    history = [{"num_updates": updates - 1}, {"num_updates": updates}]
    state = model(float(updates)) if state is None else state
    big = {"state": {0: {"exp_avg": torch.full((10,), math.nan)}}}
    torch.save({"model": state, "optimizer_history": history, "last_optimizer_state": big, **entries}, path)
    return path


def measured(*paths, **options):
    found = trajectory("a", paths, **options)
    return [(row["updates"], row["norm"]) for row in found.rows if row["layer"] is None], found


def test_files_are_ordered_by_what_they_say_and_copies_count_once(tmp_path):
    for name, updates in [("_best", 20), ("1", 10), ("_2_20", 20), ("_1_5", 5), ("_last", 30), ("_init", 0)]:
        save(tmp_path / f"checkpoint{name}.pt", updates)
    (tmp_path / "other.pt").write_bytes(b"")
    points, found = measured(tmp_path)
    assert points == [(t, 2 * t) for t in (0, 5, 10, 20, 30)], "a map of four equal entries"
    assert [row["checkpoint"] for row in found.rows if row["layer"] is None][2:] == [
        "checkpoint1.pt",
        "checkpoint_2_20.pt",
        "checkpoint_last.pt",
    ]
    assert not found.skipped
    assert "since the model of" in found.notes[0]
    assert "without a config" in found.notes[0]
    one, _ = measured(tmp_path / "checkpoint1.pt")
    assert one == [(10, 20.0)]


def test_all_columns_by_hand(tmp_path):
    save(tmp_path / "checkpoint1.pt", 1)
    save(tmp_path / "checkpoint2.pt", 3)
    rows = trajectory("a", [tmp_path], ("layers", "all", "linear")).rows
    assert [(r["scope"], r["stack"], r["layer"], r["updates"]) for r in rows] == [
        (scope, *layer, updates)
        for updates in (1, 3)
        for scope in ("layers", "all", "linear")
        for layer in ((None, None), ("decoder", 1))
    ]
    assert all(tuple(row) == COLUMNS for row in rows)
    start, end = ({k: v for k, v in rows[i].items() if k not in ("run", "scope", "stack", "layer")} for i in (0, 6))
    steps = ("step_norm", "product", "direction_cosine", "alignment")
    rest = {"parameters": 4, "linear_column_norm": pytest.approx(math.sqrt(2))}
    first = {"updates": 1, "norm": 2.0, "smallest_rms": 1.0, "checkpoint": "checkpoint1.pt"}
    assert start == first | rest | dict.fromkeys(steps)
    # every entry from 1 to 3
    assert end == {"updates": 3, "norm": 6.0, "smallest_rms": 3.0, "checkpoint": "checkpoint2.pt", "parameters": 4} | {
        "step_norm": 4.0,
        "product": 8.0,
        "direction_cosine": 1.0,
        "alignment": 1.0,
        "linear_column_norm": pytest.approx(3 * math.sqrt(2)),
    }
    everything = rows[8]
    assert everything["norm"] == pytest.approx(math.sqrt(36 + 10 * 4)), "the tied embeddings once"
    assert everything["smallest_rms"] == 2.0
    assert everything["parameters"] == 14
    assert everything["alignment"] == pytest.approx(8 / (math.sqrt(4 + 40) * 4))
    assert rows[9]["linear_column_norm"] is None, "of the whole model, in rows of whole scopes"


def test_half_precision_and_a_namespace(tmp_path):
    """1 / 3 in float16; what older models keep as their options does no harm."""
    options = argparse.Namespace(arch="roberta", task="masked_lm")
    save(tmp_path / "checkpoint1.pt", 1, model(1 / 3, torch.float16), args=options, cfg=None)
    points, _ = measured(tmp_path)
    assert points == [(1, pytest.approx(2 * float(torch.tensor(1 / 3, dtype=torch.float16)), rel=1e-15))]


@pytest.mark.parametrize(
    ("samples", "kept"), [(1, [0]), (2, [0, 3, 6]), (3, [0, 2, 4, 6]), (4, range(7)), (9, range(7))]
)
def test_fewer_samples(tmp_path, samples, kept):
    """Every max(1, floor(7 / samples))-th, as the original thins, but without its division by zero."""
    for t in range(7):
        save(tmp_path / f"checkpoint{t}.pt", t)
    points, _ = measured(tmp_path, samples=samples)
    assert [t for t, _ in points] == list(kept)


def test_what_cannot_be_measured_is_named_and_left_out(tmp_path):
    for t in (1, 2, 3):
        save(tmp_path / f"checkpoint{t}.pt", t)
    whole = (tmp_path / "checkpoint1.pt").read_bytes()
    (tmp_path / "checkpoint_cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "checkpoint_text.pt").write_text("no checkpoint")
    (tmp_path / "checkpoint_empty.pt").touch()
    torch.save([1, 2], tmp_path / "checkpoint_list.pt")
    torch.save({"model": model()}, tmp_path / "checkpoint_bare.pt")
    save(tmp_path / "checkpoint_wild.pt", 5, model(math.inf))
    torch.save({"model": model(), "x": test_half_precision_and_a_namespace}, tmp_path / "checkpoint_code.pt")
    damaged = save(tmp_path / "checkpoint_bits.pt", 6, model(6.0) | {LAYER: torch.full((2, 2), 1.2345)})
    damaged.write_bytes(damaged.read_bytes().replace(torch.tensor(1.2345).numpy().tobytes(), bytes(4)))
    points, found = measured(tmp_path)
    assert points == [(t, 2 * t) for t in (1, 2, 3)]
    assert len(found.skipped) == len(NAMED)
    for name, text in NAMED.items():
        path = re.escape(str(tmp_path / f"checkpoint_{name}.pt"))
        assert sum(bool(re.match(f"(checkpoint )?{path} .*{text}", told)) for told in found.skipped) == 1, found.skipped


def flip(path, value):
    """Save a checkpoint of the value after 6 updates, and damage it."""
    save(path, 6, model(value))
    path.write_bytes(path.read_bytes().replace(torch.tensor(value).numpy().tobytes() * 4, bytes(16)))
    return path


def test_an_intact_twin_stands_in_for_a_damaged_checkpoint(tmp_path):
    """Whichever of the two comes first by its name; the damaged one is named all the same."""
    for damaged, intact in (("checkpoint2.pt", "checkpoint_best.pt"), ("checkpoint_best.pt", "checkpoint2.pt")):
        folder = tmp_path / damaged
        folder.mkdir()
        flip(folder / damaged, 1.2345)
        save(folder / intact, 6, model(1.2345))
        points, found = measured(folder)
        assert points == [(6, pytest.approx(2.469))]
        assert {row["checkpoint"] for row in found.rows} == {intact}
        assert len(found.skipped) == 1
        assert f"{folder / damaged} is damaged" in found.skipped[0]


def test_other_parameters_after_the_same_updates_are_named(tmp_path):
    for name, scale in (("1", 1.0), ("_1_5", 1.0), ("2", 9.0), ("_last", 1.0)):
        save(tmp_path / f"checkpoint{name}.pt", 5, model(scale))
    points, found = measured(tmp_path)
    assert points == [(5, 2.0)]
    (told,) = found.skipped
    assert f"{tmp_path}/checkpoint2.pt has other parameters than {tmp_path}/checkpoint1.pt, though both" in told
    assert "after 5 updates" in told


NAMED = {
    "cut": "is truncated",
    "text": "is truncated or no checkpoint",
    "empty": "is truncated or no checkpoint",
    "list": "no tensors under 'model'",
    "bare": "does not tell its number of updates",
    "wild": f"not finite, in {re.escape(LAYER)}",
    "bits": f"is damaged: the bytes of {re.escape(LAYER)}",
    "code": "torch's safe loader refuses",
}


def test_files_without_checksums_are_taken_as_they_are(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        save(tmp_path / "checkpoint1.pt", 1)
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(
        torch.load(tmp_path / "checkpoint1.pt"), tmp_path / "checkpoint2.pt", _use_new_zipfile_serialization=False
    )
    for path in tmp_path.iterdir():
        assert measured(path)[0] == [(1, 2.0)]


def test_nothing_that_can_be_measured(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint\*.pt .* holds nothing"):
        measured(tmp_path)
    (tmp_path / "checkpoint1.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"checkpoint1\.pt .* is truncated"):
        measured(tmp_path)
    save(tmp_path / "checkpoint1.pt", 1)
    with pytest.raises(ValueError, match="unknown scope 'encoder'"):
        measured(tmp_path, scopes=["encoder"])


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (model(rows=3), rf"{LAYER} is \(2, 2\) in the first, \(3, 2\) in the second"),
        ({LAYER: torch.ones(2, 2)}, r"embed_tokens.weight is \(5, 2\) in the first, missing in the second"),
        (model() | {"more": torch.ones(1)}, r"more is missing in the first, \(1,\) in the second"),
    ],
)
def test_checkpoints_of_two_models_are_refused(tmp_path, other, text):
    save(tmp_path / "checkpoint1.pt", 1)
    save(tmp_path / "checkpoint2.pt", 2, other)
    with pytest.raises(ValueError, match=rf"checkpoint1.pt and .*checkpoint2.pt are .* different models: .*{text}"):
        measured(tmp_path)


BERT = {
    "bert.embeddings.word_embeddings.weight": torch.full((4, 2), 7.0),
    "bert.embeddings.position_ids": torch.arange(4),
    "bert.encoder.layer.0.attention.self.query.weight": torch.ones(2, 2),
    "bert.encoder.layer.1.output.dense.bias": torch.ones(5),
}


def hugging_face(folder, scale, kind):
    folder.mkdir(parents=True)
    tensors = {name: (scale * t).contiguous() if t.is_floating_point() else t for name, t in BERT.items()}
    if kind == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    elif kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:  # in two files each
        ending = kind.split()[1]
        index = {}
        for number, part in enumerate((list(BERT)[:2], list(BERT)[2:]), start=1):
            file = f"model-0000{number}-of-00002.{ending}"
            index |= dict.fromkeys(part, file)
            some = {name: tensors[name] for name in part}
            save_file(some, folder / file) if ending == "safetensors" else torch.save(some, folder / file)
        base = "model.safetensors" if ending == "safetensors" else "pytorch_model.bin"
        (folder / f"{base}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "optimizer.pt").write_bytes(b"not to be read")


@pytest.mark.parametrize("kind", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
def test_folders_of_hugging_face(tmp_path, kind):
    for step in (1000, 500, 20):
        hugging_face(tmp_path / f"run2/step-{step}", step, kind)
    (tmp_path / "run2/logs").mkdir()
    points, found = measured(tmp_path / "run2")
    assert points == [(step, pytest.approx(3 * step)) for step in (20, 500, 1000)]
    layers = [(r["stack"], r["layer"], r["norm"]) for r in found.rows if r["updates"] == 20 and r["layer"]]
    assert layers == [("encoder", 1, 40.0), ("encoder", 2, pytest.approx(20 * math.sqrt(5)))]
    assert found.notes == []
    single, _ = measured(tmp_path / "run2/step-500", tmp_path / "run2/step-20")
    assert single == points[:2]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *(("checkpoint-500", 500), ("step1000", 1000), ("step-1000", 1000), ("iter_0000500", 500)),
        *(("global_step7", 7), ("bert-seed_0-step_20", 20), ("ckpt_3", 3), ("Step 4", None), ("step_20k", None)),
        *(("t5", None), ("gpt2", None), ("gpt2-v1.5", None), ("bert_uncased_L-12_H-768", None), ("footstep5", None)),
    ],
)
def test_steps_of_folders(tmp_path, name, step):
    hugging_face(tmp_path / name, 1, "safetensors")
    if step is None:
        with pytest.raises(ValueError, match=f"{name} does not tell its step; name it like checkpoint-500"):
            measured(tmp_path)
    else:
        assert [updates for updates, _ in measured(tmp_path)[0]] == [step]


def test_broken_folders_of_hugging_face(tmp_path, monkeypatch):
    hugging_face(tmp_path / "step1", 1, "sharded safetensors")
    hugging_face(tmp_path / "step2", 2, "sharded safetensors")
    (tmp_path / "step2/model-00002-of-00002.safetensors").unlink()
    hugging_face(tmp_path / "step3", 3, "safetensors")
    (tmp_path / "step3/model.safetensors").write_bytes(b"\0" * 40)
    hugging_face(tmp_path / "step4", 4, "sharded bin")
    (tmp_path / "step4/pytorch_model.bin.index.json").write_text("{}")
    hugging_face(tmp_path / "final", 9, "bin")
    points, found = measured(tmp_path)
    assert [t for t, _ in points] == [1]
    for text in ("step2/model-00002", "step3/model.safetensors cannot be read", "does not say where the weights are"):
        assert sum(text in line for line in found.skipped) == 1, found.skipped
    assert sum("final does not tell its step; name it like checkpoint-500" in line for line in found.skipped) == 1
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"safetensors; install it with pip install 'fairseq_transnorm\[hf\]'"):
        measured(tmp_path / "step1")


def test_the_optimiser_is_not_read(tmp_path):
    """The whole file is mapped: what is not looked at stays on the disk, and tied tensors stay tied."""
    path = save(tmp_path / "checkpoint1.pt", 1)
    updates, parameters, state = read_checkpoint(path)
    assert updates == 1
    assert list(parameters) == ["decoder.embed_tokens.weight", LAYER]
    assert (
        state["model"]["decoder.output_projection.weight"].data_ptr() == parameters[next(iter(parameters))].data_ptr()
    )
    assert str(path) in Path("/proc/self/maps").read_text()
    assert find_checkpoints(path) == [path]
    assert collect([tmp_path, path]).saved == [(1, [path])], "named twice, read once"


def some_rows():
    place = {"run": "a", "scope": "layers", "stack": None, "layer": None, "updates": 0, "norm": 0.1 + 0.2}
    return [dict.fromkeys(COLUMNS) | place, dict.fromkeys(COLUMNS) | place | {"layer": 2, "stack": "decoder"}]


def test_tables_come_back_as_they_were(tmp_path):
    save_table(tmp_path / "t.json", some_rows())
    save_csv(tmp_path / "t.csv", some_rows())
    assert complete_rows("b", load_table(tmp_path / "t.json")) == some_rows()
    assert complete_rows("b", read_norms(tmp_path / "t.csv")) == some_rows()


def test_csv_of_somebody_else(tmp_path):
    (tmp_path / "x.csv").write_text("step, norm, loss\n10, 2.5, 7\n0, 1, nan\n")
    rows = complete_rows("mine", read_norms(tmp_path / "x.csv"))
    assert [(r["run"], r["updates"], r["norm"], r["layer"]) for r in rows] == [
        ("mine", 0, 1.0, None),
        ("mine", 10, 2.5, None),
    ]
    for text, message in [
        ("a,b\n1,2\n", r"has the columns \['a', 'b'\]; it needs step"),
        ("step,norm\n1,x\n", "line 2: norm is 'x', not a number"),
        ("step,norm\n1,nan\n", "line 2: norm is 'nan', not a number"),
        ("step,norm\n1,2\n3,\n", "line 3: no step or no norm"),
        ("step,norm\n", "has no rows"),
    ]:
        (tmp_path / "x.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_norms(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_norms(tmp_path / "y.csv")


def test_the_log_of_a_training(tmp_path):
    layers = [{"stack": "decoder", "layer": 1, "norm": 1.5}]
    records = [
        {"updates": 0, "scope": "layers", "norm": 2.0, "layers": layers},
        {
            "updates": 7,
            "epoch": 1,
            "scope": "layers",
            "norm": 3.0,
            "step_norm": 0.5,
            "alignment": 0.1,
            "layers": layers,
        },
    ]
    (tmp_path / "norms.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = complete_rows("b", read_norms(tmp_path))
    assert [(r["layer"], r["updates"], r["norm"], r["alignment"]) for r in rows] == [
        (None, 0, 2.0, None),
        (None, 7, 3.0, 0.1),
        (1, 0, 1.5, None),
        (1, 7, 1.5, None),
    ]
    assert {row["run"] for row in rows} == {"b"}


def test_names_of_series():
    whole, layer = some_rows()
    assert list(scope_series([whole, layer])) == ["a"]
    assert list(scope_series([whole, whole | {"scope": "all"}])) == ["layers", "all"]
    assert list(scope_series([whole, whole | {"run": "b"}])) == ["a", "b"]
    assert list(scope_series([whole, whole | {"scope": "all", "run": "b"}])) == ["a, layers", "b, all"]
    assert list(scope_series([whole, layer, layer | {"stack": "encoder"}], stacks=True)) == ["decoder", "encoder"]
