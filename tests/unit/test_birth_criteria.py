"""The table of acceptance criteria of the birth of induction heads, from logs made by hand."""

import math

import pytest

from fairseq_transnorm.measure.birth_criteria import CRITERIA, Evidence, check
from fairseq_transnorm.measure.criteria import Criterion, compare

STEP = 20


def log(last, **probes):
    """Training lines every 20 updates; a probe is a number, or a function of the update."""
    lines = []
    for update in range(0, last + 1, STEP):
        values = {name: value(update) if callable(value) else value for name, value in probes.items()}
        lines.append({"iter": update} | values)
    return lines


def from_update(update, value, before=0.0):
    return lambda at: value if at >= update else before


def good():
    """Logs that fulfil everything."""
    basic = log(
        600,
        acc_end_test=from_update(400, 0.94),
        wo1_acc=from_update(160, 1.0),
        wk1_acc=from_update(200, 1.0),
        wk0_acc=from_update(500, 0.3),
        wk0_64_acc=from_update(300, 0.6),
    )
    basic.append({"iter": 600, "split": "valid", "score2_acc": 0.9})
    losses = {"loss_bigram": lambda at: 2 + 2 * math.exp(-at / 20), "loss_head": lambda at: 4 * math.exp(-at / 200)}
    return {
        "basic-1": basic,
        "basic-2": basic,
        "keys-1": log(600, acc_end_test=0.3, wo1_acc=0.8),
        "wo2-1": log(600, acc_end_test=0.02, wo1_acc=from_update(220, 1.0, before=0.03), wk0_64_acc=0.03),
        "full-1": log(1000, acc_end_test=0.97, **losses),
        "one_layer-1": log(1000, acc_end=0.5, loss_head=2.0),
    }


def verdicts(logs):
    return {line["quantity"]: line["ok"] for line in check(Evidence(logs))}


def test_good_runs_fulfil_every_criterion():
    assert set(verdicts(good()).values()) == {"yes"}
    assert len(verdicts(good())) == len(CRITERIA)


@pytest.mark.parametrize(
    ("run", "probe", "value", "missed"),
    [
        ("basic-2", "acc_end_test", from_update(400, 0.8), {"basic: accuracy after 600"}),
        ("basic-2", "wo1_acc", from_update(320, 1.0), {"basic: updates from W_O2 to W_K1"}),
        ("basic-2", "acc_end_test", from_update(280, 0.94), {"basic: updates from W_K1 to accuracy"}),
        ("basic-2", "acc_end_test", from_update(400, 0.88), {"basic: updates from W_K1 to accuracy"}),
        (
            "basic-1",
            "wk0_64_acc",
            from_update(300, 0.3),
            {"basic: W_K1, t < 64, after 600", "basic: the same, less all t"},
        ),
        ("keys-1", "acc_end_test", 0.5, {"keys frozen: accuracy after 200"}),
        ("wo2-1", "wo1_acc", from_update(200, 0.04, before=0.03), {"W_O2 frozen: change of its memory"}),
        ("one_layer-1", "loss_head", from_update(980, 0.5, before=2.0), {"one layer: least loss_head"}),
        (
            "full-1",
            "loss_head",
            lambda at: 4 * math.exp(-at / 50),
            {"two layers: loss_head's decrease by 100, share"},
        ),
    ],
)
def test_a_run_that_behaves_otherwise_is_told(run, probe, value, missed):
    logs = good()
    logs[run] = [
        line if line.get("split") else line | {probe: value(line["iter"]) if callable(value) else value}
        for line in logs[run]
    ]
    found = verdicts(logs)
    assert missed <= {quantity for quantity, ok in found.items() if ok == "NO"}
    assert found["basic: W_O2 after 400"] == "yes"


def test_a_missing_run_or_value_is_named():
    logs = good()
    del logs["keys-1"]
    with pytest.raises(LookupError, match="no run keys-1"):
        check(Evidence(logs))
    logs = good() | {"wo2-1": log(100, acc_end_test=0.0, wo1_acc=0.0, wk0_64_acc=0.0)}
    with pytest.raises(LookupError, match="wo2-1 has no acc_end_test after 200 updates, it ends at 100"):
        check(Evidence(logs))


def test_the_seed_that_is_nearest_to_a_bound_is_shown_with_all():
    (line,) = compare([Criterion(1, "", "", lambda values: values, 0.5, 0.9)], [0.6, 0.85, 0.7])
    assert (line["measured"], line["seeds"], line["ok"]) == (0.85, "0.6 0.85 0.7", "yes")
    (line,) = compare([Criterion(1, "", "", lambda values: values, 0.5)], [0.6, math.nan])
    assert math.isnan(line["measured"])
    assert line["ok"] == "NO"
