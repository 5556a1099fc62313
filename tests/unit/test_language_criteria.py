"""The table of acceptance criteria of transformers on formal languages, from numbers made by hand."""

from dataclasses import replace

import pytest

from fairseq_transnorm.measure.language_criteria import CRITERIA, MEASURED, Evidence, LanguageRun, check

LR, GAMMA = 0.001, 0.98


def run(name, *accuracies, **measured):
    """A training with these accuracies of validation, epoch after epoch."""
    lines = [
        {"epoch": epoch, "lr": LR * GAMMA ** (epoch - 1), "valid": {"accuracy": accuracy}}
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]
    return LanguageRun(name, lines, max(accuracies), LR, GAMMA, **measured)


def good():
    """Runs that fulfil everything; the first had three perfect validations."""
    runs = [
        run("reverse-1", 0.9, 1.0, 1.0, 1.0, diagonal=7),
        run("reverse-2", *[0.5] * 14, 0.99, diagonal=8),
        run("one_layer-1", *[0.3] * 15),
        run("histogram-1", 0.99, *[0.9] * 14),
        run("double_histogram-1", *[0.9] * 15, masses=[0.95, 0.9, 0.85]),
        run("unsupervised-1", *[0.5] * 15, masses=[0.2, 0.9, 0.9]),
        run("unsupervised-2", *[0.8] * 15, masses=[0.7, 0.9, 0.9]),
        run("brackets-1", *[0.98] * 15),
    ]
    return {each.name: each for each in runs}


def missed(runs):
    return {line["quantity"] for line in check(Evidence(runs)) if line["ok"] == "NO"}


def test_good_runs_fulfil_every_criterion():
    lines = check(Evidence(good()))
    assert [line["ok"] for line in lines] == ["yes"] * len(CRITERIA)
    assert {name.rpartition("-")[0] for name, each in good().items() if each.masses or each.diagonal} == set(MEASURED)


@pytest.mark.parametrize(
    ("name", "change", "wanted"),
    [
        ("reverse-2", {"test_accuracy": 0.97}, {"reverse: test accuracy"}),
        ("reverse-2", {"diagonal": 6}, {"reverse: of abcdefgh"}),
        ("one_layer-1", {"epochs": run("", *[0.3] * 14, 0.45).epochs}, {"one layer: accuracy"}),
        ("double_histogram-1", {"epochs": run("", *[0.9] * 14, 0.8).epochs}, {"double histogram: accuracy"}),
        ("double_histogram-1", {"masses": [0.9, 0.7, 0.9]}, {"double histogram: least target mass"}),
        ("unsupervised-1", {"masses": [0.4, 0.1, 0.1]}, {"unsupervised: mean target mass of 0, 0"}),
        ("unsupervised-1", {"epochs": run("", *[0.7] * 15).epochs}, {"unsupervised: mean accuracy"}),
        ("brackets-1", {"gamma": 0.97}, {"all: greatest relative error"}),
    ],
)
def test_a_run_that_behaves_otherwise_is_told(name, change, wanted):
    runs = good()
    runs[name] = replace(runs[name], **change)
    assert missed(runs) == wanted


def test_what_is_missing_is_named():
    runs = good()
    short = runs | {"one_layer-1": run("one_layer-1", 0.3, 0.3)}
    with pytest.raises(LookupError, match="one_layer-1 ends after 2 of 15 epochs"):
        check(Evidence(short))
    for name in ("reverse-1", "double_histogram-1"):
        blind = runs | {name: replace(runs[name], masses=None, diagonal=None)}
        with pytest.raises(LookupError, match=f"nothing was measured of where {name} looks"):
            check(Evidence(blind))
    del runs["brackets-1"]
    with pytest.raises(LookupError, match=r"no run brackets-1 with results\.json, only reverse-1"):
        check(Evidence(runs))
