"""The grid of learning rates and weight decays: its axes, its files, what it refuses, and its map."""

import json
import runpy
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from fairseq_transnorm.measure import growth_grid
from fairseq_transnorm.measure.growth_grid import Grid, demands, norms, run_grid, settings_of, train_cell
from tests.helpers import ROOT

ANALYSIS = "analysis/normgrowth/grid.py"
TINY = "--arch transformer_lm --decoder-embed-dim 8 --decoder-input-dim 8 --decoder-output-dim 8 --decoder-layers 1"
TINY += " --decoder-ffn-embed-dim 8 --decoder-attention-heads 2 --tokens-per-sample 64 --max-update 2"


def grid(data, more="", **changed):
    return Grid(data, tuple(f"{TINY} {more}".split()), **changed)


@pytest.fixture
def fake(monkeypatch):
    """Cells that are made up instead of trained; returns those that were asked for."""
    asked = []

    def cell(grid, lr, decay):
        asked.append((lr, decay))
        row = {"optimizer": grid.optimizer, "lr": lr, "weight_decay": decay, "seed": grid.seed, "diverged": False}
        row |= {"updates": 2, "layers_parameters": 50, "all_parameters": 90}
        row |= {f"{scope}_before": 5.0 for scope in growth_grid.QUANTITIES}
        return row | {f"{scope}_after": 5 + lr - decay for scope in growth_grid.QUANTITIES}

    monkeypatch.setattr(growth_grid, "train_cell", cell)
    return asked


def test_settings_are_all_that_decides(tiny_lm_data):
    usual = settings_of(grid(tiny_lm_data))
    assert (usual["decoder_layers"], usual["dropout"], usual["optimizer"], usual["seed"]) == (1, 0.1, "adam", 0)
    assert not {"lr", "weight_decay", "save_dir", "data", "nprocs_per_node"} & usual.keys()
    changed = settings_of(grid(tiny_lm_data, "--adam-betas (0.9,0.99) --update-freq 2"))
    assert {name for name in usual if usual[name] != changed.get(name)} == {"adam_betas", "update_freq"}
    coupled = settings_of(grid(tiny_lm_data, optimizer="sgd"))
    assert coupled["optimizer"] == "sgd"
    assert coupled["momentum"] == 0
    assert "adam_betas" not in coupled


@pytest.mark.parametrize(
    ("flags", "changed", "names"),
    [
        ("--fp16", {}, {"fp16"}),
        ("--memory-efficient-fp16", {}, {"fp16", "memory_efficient_fp16"}),
        ("--bf16", {}, {"bf16", "tpu"}),
        ("--clip-norm 1", {}, {"clip_norm"}),
        ("--batch-size 3", {}, {"batch_size", "batch_size_valid"}),
        ("--fp16", {"optimizer": "sgd"}, {"fp16"}),
        ("", {"seed": 1}, {"seed"}),
        ("", {"device": "cuda"}, {"device", "cpu"}),
    ],
)
def test_each_setting_by_itself_tells_cells_apart(tiny_lm_data, monkeypatch, flags, changed, names):
    monkeypatch.setattr(growth_grid, "check_device", lambda device: None)
    alike = {key: value for key, value in changed.items() if key == "optimizer"}
    first, other = settings_of(grid(tiny_lm_data, **alike)), settings_of(grid(tiny_lm_data, flags, **changed))
    assert {name for name in first if first[name] != other[name]} == names
    assert first.keys() == other.keys()


def test_versions_tell_cells_apart(tiny_lm_data, monkeypatch):
    first = settings_of(grid(tiny_lm_data))
    monkeypatch.setattr(growth_grid.torch, "__version__", "0.4")
    monkeypatch.setattr(growth_grid.fairseq_transnorm, "__version__", "0")
    other = settings_of(grid(tiny_lm_data))
    assert {name for name in first if first[name] != other[name]} == {"torch", "fairseq_transnorm"}


def test_data_are_known_by_their_content(tiny_lm_data, tmp_path):
    for folder in ("same", "other"):
        (tmp_path / folder).mkdir()
        for name in ("dict.txt", "train.bin", "train.idx"):
            content = (tiny_lm_data / name).read_bytes()
            (tmp_path / folder / name).write_bytes(
                content[::-1] if (folder, name) == ("other", "train.bin") else content
            )
    first, same, other = (settings_of(grid(folder)) for folder in (tiny_lm_data, tmp_path / "same", tmp_path / "other"))
    assert first == same
    assert {name for name in first if first[name] != other[name]} == {"data_sha256"}
    (tmp_path / "same" / "train.idx").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"same lacks dict\.txt, train\.bin or train\.idx; it has: dict\.txt, t"
    ):
        settings_of(grid(tmp_path / "same"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"flags": ("--arch", "transformer_lm", "--lr=3")}, "--lr=3 cannot stand after --: the grid has options"),
        ({"flags": ("--weight-decay", "1", "--seed", "2")}, "--weight-decay --seed cannot stand"),
        ({"optimizer": "adagrad"}, "unknown optimizer 'adagrad'; known: adam, sgd"),
    ],
)
def test_what_cannot_be_told_is_refused(tiny_lm_data, changed, message):
    with pytest.raises(ValueError, match=message):
        settings_of(Grid(**{"data": tiny_lm_data, "flags": ()} | changed))


def test_finished_cells_are_kept_and_others_added(tiny_lm_data, tmp_path, fake):
    first = run_grid(grid(tiny_lm_data), [0.1, 0.01], [1e-3], tmp_path)
    assert fake == [(0.1, 1e-3), (0.01, 1e-3)]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["lr0.01_wd0.001.json", "lr0.1_wd0.001.json"]
    more = run_grid(grid(tiny_lm_data), [0.1, 0.01], [1e-3, 1e-4], tmp_path)
    assert fake[2:] == [(0.1, 1e-4), (0.01, 1e-4)], "only those that were missing"
    assert [(row["lr"], row["weight_decay"]) for row in more] == [(0.1, 1e-3), (0.1, 1e-4), (0.01, 1e-3), (0.01, 1e-4)]
    assert more[::2] == first
    with pytest.raises(ValueError, match=r"learning rate 0, weight decay 0\.1: the axes are log"):
        run_grid(grid(tiny_lm_data), [0], [0.1], tmp_path)


def test_settings_are_never_mixed(tiny_lm_data, tmp_path, fake):
    run_grid(grid(tiny_lm_data), [0.1], [0.1], tmp_path)
    path = tmp_path / "lr0.1_wd0.1.json"
    for changed, message in (
        (grid(tiny_lm_data, seed=1), r"lr0\.1_wd0\.1\.json was trained with seed 0 \(now 1\); give another folder"),
        (grid(tiny_lm_data, "--fp16"), r"was trained with fp16 False \(now True\); give another folder"),
        (grid(tiny_lm_data, "--dropout 0.2 --clip-norm 1"), r"clip_norm 0\.0 \(now 1\.0\), dropout 0\.1 \(now 0\.2\);"),
        (
            grid(tiny_lm_data, optimizer="sgd"),
            r"was trained with adam_betas \[0\.9, 0\.999\] \(now None\), .*, and more;",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run_grid(changed, [0.01], [0.1], tmp_path)  # another cell, and still it does not go with this one
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"fingerprint": "0"}))
    with pytest.raises(ValueError, match="trained with settings that it does not hold whole"):
        run_grid(grid(tiny_lm_data), [0.1], [0.1], tmp_path)
    path.write_text('{"cell": {}}')
    with pytest.raises(ValueError, match=r"lr0\.1_wd0\.1\.json is no cell of a grid"):
        run_grid(grid(tiny_lm_data), [0.1], [0.1], tmp_path)
    assert len(fake) == 1


def test_half_precision_needs_a_gpu(tiny_lm_data, tmp_path, fake):
    with pytest.raises(ValueError, match="--fp16 trains on a GPU only; give a --device such as cuda"):
        run_grid(grid(tiny_lm_data, "--fp16"), [0.1], [0.1], tmp_path)
    assert not fake


def test_a_diverged_cell_is_a_result(tiny_lm_data):
    """fairseq stops at the first gradient that is not finite; a layer that is computed again hides its reason."""
    ours = TINY.replace("--arch transformer_lm", "--arch normgrowth_pre_norm")
    ours = ours.replace(" --decoder-input-dim 8 --decoder-output-dim 8", "")
    for flags in (TINY, ours):
        row = train_cell(Grid(tiny_lm_data, tuple(flags.split()), "sgd"), 1e20, 1e-3)
        assert row["diverged"]
        assert row["updates"] == 1
        assert growth_grid.change(row, "layers") is None
        json.dumps(row, allow_nan=False)
    with pytest.raises(AssertionError, match="divisible"):
        train_cell(grid(tiny_lm_data, "--decoder-attention-heads 3"), 1e-3, 1e-3)


def test_norms():
    model = torch.nn.Module()
    model.embed_tokens = torch.nn.Embedding(1, 2)
    model.layers = torch.nn.ModuleList([torch.nn.Linear(2, 1)])
    with torch.no_grad():
        model.embed_tokens.weight.copy_(torch.tensor([[4.0, 4.0]]))
        model.layers[0].weight.copy_(torch.tensor([[1.0, 3.0]]))
        model.layers[0].bias.fill_(6**0.5)
    assert norms(model) == pytest.approx({"layers": 4.0, "all": 48**0.5, "linear": 2.0})


def rows(change, rates=(0.1, 0.01, 0.001), decays=(0.1, 0.01, 0.001), **changed):
    common = {"optimizer": "adam", "seed": 0, "updates": 2, "diverged": False}
    common |= {"layers_parameters": 50432, "all_parameters": 311_576} | changed
    found = []
    for lr in rates:
        for decay in decays:
            row = common | {"lr": lr, "weight_decay": decay}
            for scope in growth_grid.QUANTITIES:
                row |= {f"{scope}_before": 22.7, f"{scope}_after": 22.7 + change(lr, decay)}
            found.append(row)
    return found


def boundary(lr, decay):
    return lr - decay / 20


def test_demands():
    lines = demands(rows(boundary))
    assert [(line["cells"], line["ok"]) for line in lines] == [(6, "yes"), (1, "yes"), (1, "yes")]
    assert lines[0]["worst"] == pytest.approx(0.005)
    assert [line["ok"] for line in demands(rows(lambda lr, decay: 1.0))] == ["yes", "yes", "NO"]
    assert [line["ok"] for line in demands(rows(lambda lr, decay: -1.0))] == ["NO", "NO", "yes"]
    assert [line["ok"] for line in demands(rows(boundary, diverged=True))] == ["NO", "NO", "NO"]
    with pytest.raises(ValueError, match="nothing to --check: no cell has a learning rate of"):
        demands(rows(boundary, rates=[1e-4]))
    with pytest.raises(ValueError, match="--check is about --optimizer adam, not sgd"):
        demands(rows(boundary, optimizer="sgd"))
    with pytest.raises(ValueError, match="nothing to --check"):
        demands(rows(boundary, rates=[1e-3], decays=[1e-2]))


@pytest.fixture(scope="module")
def analysis():
    return runpy.run_path(str(ROOT / ANALYSIS))


def test_axes(analysis):
    assert analysis["axis"](None, 5) == [0.1, 0.01, 0.001, 0.0001, 1e-05]
    assert len(analysis["axis"](None, 20)) == 20
    assert analysis["axis"]([0.3], 5) == [0.3]
    assert analysis["edges"]([0.01, 0.1]).tolist() == pytest.approx([0.01 / 10**0.5, 0.1 / 10**0.5, 0.1 * 10**0.5])
    assert analysis["edges"]([0.01]).tolist() == pytest.approx([0.01 / 10**0.5, 0.01 * 10**0.5])


def test_the_boundary_lies_where_the_sign_changes(analysis, tmp_path):
    """lambda = 20 eta, straight on logarithmic axes, between cells of very different changes."""
    drawn = []

    class Axes:
        def plot(self, x, y, **style):
            drawn.append((x, y, style))

    power = [10.0**-k for k in range(5, 0, -1)]
    table = rows(lambda lr, decay: (lr * 20 / decay) - (decay / (lr * 20)), power, power)
    rates, decays, values = analysis["plane"](table, "layers")
    analysis["draw_boundary"](Axes(), rates, decays, analysis["np"].arcsinh(values))
    ((x, y, style),) = drawn
    assert style["label"] == "no change"
    assert len(x) > 5
    assert analysis["np"].allclose(y / x, 20, rtol=0.15)  # as straight pieces between cells can be


@pytest.mark.parametrize(("optimizer", "quantity", "size"), [("adam", "layers", 9), ("sgd", "linear", 1)])
def test_maps(analysis, tmp_path, optimizer, quantity, size):
    options = Namespace(quantity=quantity, seed=0, check=False)
    table = rows(boundary, optimizer=optimizer)
    first, *_ = analysis["summary"](table[:1] + [row | {"diverged": True} for row in table[1:]], options)
    assert list(first.values()) == ["0.1", pytest.approx(0.095), None, None]
    table[0]["diverged"] = True
    analysis["draw"](table[:size], str(tmp_path / "map"), options)
    assert {path.name for path in tmp_path.iterdir()} == {"map.pdf", "map.png", "map.json"}


def test_command_line_errors(analysis, tmp_path, capsys):
    main = analysis["main"]
    assert main([str(tmp_path / "none"), "--out", str(tmp_path / "x"), "--", *TINY.split()]) == 1
    assert "none lacks dict.txt" in capsys.readouterr().err
    for args in (["--", "--arch", "transformer_lm"], [str(tmp_path), "--table", "x.json"]):
        with pytest.raises(SystemExit, match="2"):
            main(args)
        assert "give a data folder to train on, or --table" in capsys.readouterr().err
    assert not Path(tmp_path / "x.json").exists()


@pytest.mark.parametrize("options", ["--optimizer sgd", "--lr 1e-4", "--lr 1e-3 --weight-decay 1e-2"])
def test_nothing_to_check_is_said_before_a_cell_is_trained(analysis, tiny_lm_data, tmp_path, capsys, options):
    args = [str(tiny_lm_data), *options.split(), "--check", "--out", str(tmp_path / "x"), "--", *TINY.split()]
    assert analysis["main"](args) == 1
    assert "--check" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_table_with_nothing_to_check_is_not_drawn(analysis, tmp_path, capsys):
    table = tmp_path / "table.json"
    about = {"command": "", "version": "", "seed": 0}
    table.write_text(json.dumps({"rows": rows(boundary, optimizer="sgd"), **about}))
    assert analysis["main"](["--table", str(table), "--check", "--out", str(tmp_path / "x")]) == 1
    assert "--check is about --optimizer adam" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [table]
