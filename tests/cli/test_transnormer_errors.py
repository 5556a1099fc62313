"""Wrong input ends in a message that names it, as the last thing said, and a non-zero exit status."""

import io
import shutil

import pytest

from fairseq_transnorm import USER_DIR
from fairseq_transnorm.measure import perplexity, samples
from tests.cli.conftest import LENGTH, SCRIPT_ENV
from tests.helpers import build_lm_data, run_cli

TASK = ["--user-dir", USER_DIR, "--task", "language_modeling", "--cpu"]
TRAIN = [*TASK, "--arch", "transnormer_lm_tiny", "--tokens-per-sample", 32, "--batch-size", 4, "--max-update", 1]
TRAIN += ["--optimizer", "adam", "--lr", 1e-3]


def last_words(name, *args, env=None, stdin=None):
    """The end of the output of a command that must fail."""
    result = run_cli(name, *args, env=env, stdin=stdin, check=False)
    assert result.returncode not in (0, -9), result.stdout[-2000:]
    return "\n".join(result.stdout.strip().splitlines()[-2:])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--decoder-attention-heads", 3],
            "--decoder-attention-heads 3 does not divide --decoder-embed-dim 64; use one",
        ),
        (["--linear-act", "reluu"], "argument --linear-act: invalid choice: 'reluu' (choose from"),
        (["--block-size", 0], "--block-size 0 must be at least 1"),
        (["--max-target-positions", 16], "--max-target-positions 16 is too few for --tokens-per-sample 32"),
    ],
    ids=lambda value: str(value[0]).strip("-") if isinstance(value, list) else "",
)
def test_fairseq_train_refuses_options_by_name(flags, message, tiny_lm_data, tmp_path):
    assert message in last_words("fairseq-train", tiny_lm_data, *TRAIN, *flags, "--save-dir", tmp_path)


def test_hydra_refuses_an_unknown_norm(tiny_lm_data, tmp_path):
    where = ["--config-dir", f"{USER_DIR}/config/transnormer", "--config-name", "demo"]
    changes = [f"task.data={tiny_lm_data}", f"checkpoint.save_dir={tmp_path}", "model.linear_norm=batchnorm"]
    result = run_cli("fairseq-hydra-train", *where, *changes, check=False)
    assert result.returncode != 0
    assert "batchnorm" in "\n".join(result.stdout.strip().splitlines()[-8:])


@pytest.fixture
def truncated(trained, tmp_path):
    """A run whose last checkpoint was cut in half; the best one beside it is whole."""
    shutil.copy(trained, tmp_path / "checkpoint_best.pt")
    path = tmp_path / "checkpoint_last.pt"
    path.write_bytes(trained.read_bytes()[: trained.stat().st_size // 2])
    return path


def test_a_truncated_checkpoint_is_named_with_a_whole_one(truncated, tiny_lm_data):
    told = [
        last_words("fairseq-train", tiny_lm_data, *TRAIN, "--save-dir", truncated.parent),
        last_words("scripts/eval_alm.sh", truncated, tiny_lm_data, env=SCRIPT_ENV),
    ]
    for words in told:
        assert truncated.name in words
        assert "truncated" in words
        assert "checkpoint_best.pt" in words
    words = last_words("scripts/train_alm.sh", tiny_lm_data, env=SCRIPT_ENV | {"SAVE_DIR": truncated.parent})
    assert f"error: cannot go on from {truncated}" in words


@pytest.fixture(scope="session")
def other_data(once):
    """A folder with a smaller dictionary than that of tiny_lm_data."""
    return once("other", lambda folder: build_lm_data(folder, train=3, held_out=2)) / "data-bin"


def test_another_dictionary_than_that_of_the_training_is_refused(trained, other_data, tmp_path):
    env = SCRIPT_ENV | {"SAVE_DIR": tmp_path, "ARCH": "transnormer_lm_tiny"}
    told = [
        last_words("fairseq-eval-lm", other_data, *TASK, "--path", trained),
        last_words("scripts/generate.sh", trained, other_data, env=env | {"PROMPT": "a"}),
    ]
    for words in told:
        assert "dictionary mismatch" in words
        assert "72 symbols" in words
    shutil.copy(trained, tmp_path / "checkpoint_last.pt")
    output = run_cli("scripts/train_alm.sh", other_data, "--tokens-per-sample", 32, env=env, check=False)
    assert output.returncode != 0
    assert "dictionary mismatch" in output.stdout


def test_an_evaluation_that_would_leave_out_text_fails(trained, tiny_lm_data, tmp_path):
    env = SCRIPT_ENV | {"OUT": tmp_path / "p.json"}
    words = last_words("scripts/eval_alm.sh", trained, tiny_lm_data, "--tokens-per-sample", 2 * LENGTH, env=env)
    assert f"sequences longer than the {LENGTH} positions" in words
    assert f"--tokens-per-sample is {2 * LENGTH}, try {LENGTH}" in words
    assert not (tmp_path / "p.json").exists()


def test_evaluation_refuses_options_by_name(trained, tiny_lm_data):
    with pytest.raises(FileNotFoundError, match="has no split 'dev'; it has test, train, valid"):
        perplexity.measure(trained, tiny_lm_data, ["dev"])
    with pytest.raises(ValueError, match=f"--context-window {LENGTH} must be from 0 to below --tokens-per-sample"):
        perplexity.measure(trained, tiny_lm_data, context_window=LENGTH)


def test_a_text_longer_than_learned_positions_is_refused(tiny_lm_data, tmp_path):
    run_cli("fairseq-train", tiny_lm_data, *TRAIN, "--abs-pos", "learned", "--save-dir", tmp_path)
    checkpoint = tmp_path / "checkpoint_last.pt"
    env = SCRIPT_ENV | {"PROMPT": "the old king " * 20, "LENGTH": 5}
    assert "max_positions=32" in last_words("scripts/generate.sh", checkpoint, tiny_lm_data, env=env)
    with pytest.raises(ValueError, match=r"--length 50 does not fit: .* learned, 32 of them"):
        samples.sample(checkpoint, tiny_lm_data, ["the"], length=50)


def test_generation_without_a_prompt_is_refused(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(ValueError, match="no prompt"):
        samples.read_prompts(None)


SCRIPTS = {"scripts/train_alm.sh": [], "scripts/eval_alm.sh": ["CHECKPOINT"], "scripts/generate.sh": ["CHECKPOINT"]}
SCRIPTS |= {"scripts/train_blm.sh": [], "scripts/eval_blm.sh": ["CHECKPOINT"]}


def test_seeds_of_masks_are_refused_by_their_flag(tmp_path):
    (tmp_path / "dict.txt").write_text("a 1\n")
    for seeds in ("1,-2", str(2**32)):
        words = last_words("scripts/eval_blm.sh", "CHECKPOINT", tmp_path, env=SCRIPT_ENV | {"MASK_SEED": seeds})
        assert f"--mask-seeds '{seeds}': whole numbers from 0 to 2^32 - 1" in words


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_name_a_missing_or_empty_data_folder(script, tmp_path):
    words = last_words(script, *SCRIPTS[script], tmp_path / "none", env=SCRIPT_ENV)
    assert f"error: no data folder {tmp_path}/none" in words
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes").touch()
    words = last_words(script, *SCRIPTS[script], tmp_path / "empty", env=SCRIPT_ENV)
    assert "empty lacks dict.txt; it has: notes" in words


def test_training_without_text_is_refused(tiny_lm_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_lm_data, data)
    (data / "train.bin").write_bytes(b"")
    words = last_words("scripts/train_alm.sh", data, env=SCRIPT_ENV)
    assert "the split train" in words
    assert "has no text" in words
    (data / "valid.idx").unlink()
    assert "lacks valid.idx" in last_words("scripts/train_alm.sh", data, env=SCRIPT_ENV)
