"""WordPiece: BERT's rules on vocabularies by hand, its vocabulary file and all that can be wrong with one."""

from argparse import Namespace

import pytest
from fairseq.data import Dictionary, encoders

from fairseq_transnorm.data import bert_wordpiece, tokenizers
from fairseq_transnorm.data.binarize import Corpus, build
from fairseq_transnorm.data.tokenizers import Tokenization
from tests.data_sources import preprocess_here

# As the official files begin: padding first, unused places, the other special symbols in the middle.
HEAD = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["!", "[", "]", "mask", "un", "##aff", "##able", "aff", "cafe", "do", "not", "中"]


def write_vocab(path, pieces):
    path.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    return path


def bpe_of(folder, pieces, cased=False):
    path = folder / bert_wordpiece.MODEL_FILE
    path.write_text(bert_wordpiece.model_text(pieces, cased), encoding="utf-8")
    return tokenizers.load_bpe("wordpiece", folder)


def test_the_longest_piece_first_and_whole_words_unknown(tmp_path):
    bpe = bpe_of(tmp_path, HEAD + PIECES)
    assert bpe.encode("Unaffable!") == "un ##aff ##able !"
    assert bpe.encode("unaffabl do") == "<unk> do", "a word with an unknown part is unknown as a whole"
    assert bpe.encode(" Café\u3000中not\t") == "cafe 中 not"
    assert bpe.encode("[MASK] mask") == "[ mask ] mask", "text makes no special symbol"
    assert bpe.encode("\u0301") == "<unk>", "only a lone accent: no empty line, which would end a document"
    assert (bpe.encode(""), bpe.encode(" ")) == ("", "")
    assert bpe.decode("un ##aff ##able ! do not <unk>") == "unaffable ! do not <unk>"


def test_cased(tmp_path):
    bpe = bpe_of(tmp_path, [*HEAD, "Café", "Caf", "##e"], cased=True)
    assert bpe.encode("Café Cafe café") == "Café Caf ##e <unk>"


def test_official_vocabulary_becomes_the_dictionary(tmp_path, monkeypatch):
    preprocess_here(monkeypatch)
    vocab = write_vocab(tmp_path / "vocab.txt", HEAD + PIECES)
    lines = ["unaffable, not!", "do what"]
    corpus = Corpus("two lines", {"train": lines, "valid": lines[:1], "test": lines[1:]}.__getitem__)
    note = build(corpus, tmp_path / "data", Tokenization("wordpiece", wordpiece_vocab=vocab))
    symbols = [line.split(" ")[0] for line in (tmp_path / "data/dict.txt").read_text(encoding="utf-8").splitlines()]
    assert symbols == ["[unused0]", *PIECES], "the order of the vocabulary, without BERT's special symbols"
    # With <mask>, which the task adds, there are as many as BERT has.
    assert note["vocab_size"] == len(Dictionary.load(str(tmp_path / "data/dict.txt"))) == len(HEAD + PIECES) - 1
    assert (note["dictionary"], note["files"]) == ("file", ["wordpiece.json"])
    assert note["splits"]["train"]["unknown"] == 2, "the comma and what"
    again = build(corpus, tmp_path / "like", Tokenization.of(tmp_path / "data"))
    assert again["dictionary_sha256"] == note["dictionary_sha256"]
    assert again["splits"] == note["splits"]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([p for p in HEAD + PIECES if p not in ("[MASK]", "[CLS]")], r"vocab\.txt lacks \[CLS\], \[MASK\]; "),
        ([*HEAD, "a", "b", "a"], r"line 9: 'a' stands in line 7 already"),
        ([], "is empty"),
        ([p for p in HEAD if p != "[unused0]"], r"has no piece but \[PAD\], \[UNK\]"),
        ([*HEAD, "a", "", "b"], "line 8: '' is not one piece"),
        ([*HEAD, "a", "b c"], "line 8: 'b c' is not one piece"),
        ([*HEAD, "a", "<s>"], "line 8: '<s>' is a symbol of fairseq's own"),
        ([*HEAD, "a", "##The"], "line 8: '##The' has capitals, but the text is lower-cased; .* --cased"),
    ],
)
def test_bad_vocabulary(pieces, message, tmp_path):
    vocab = write_vocab(tmp_path / "vocab.txt", pieces)
    with pytest.raises(ValueError, match=message):
        Tokenization("wordpiece", wordpiece_vocab=vocab).check()


def test_options_that_do_not_go_together(tmp_path):
    vocab = write_vocab(tmp_path / "vocab.txt", HEAD + PIECES)
    with pytest.raises(ValueError, match="--vocab-size does not go with --wordpiece-vocab"):
        Tokenization("wordpiece", 100, wordpiece_vocab=vocab).check()
    for more in ({"cased": True}, {"wordpiece_vocab": vocab}):
        with pytest.raises(ValueError, match="go with the tokenizer wordpiece, not with words"):
            Tokenization("words", **more).check()
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.txt; beside it: vocab\.txt"):
        Tokenization("wordpiece", wordpiece_vocab=tmp_path / "none.txt").check()


def test_bad_model_file(tmp_path):
    for value, error, message in [
        ("", FileNotFoundError, r"--wordpiece-model \(not given\): no such file"),
        (str(tmp_path / "none"), FileNotFoundError, "none: no such file"),
        (str(write_vocab(tmp_path / "vocab.txt", HEAD)), ValueError, r"vocab\.txt is not a wordpiece\.json"),
    ]:
        with pytest.raises(error, match=message):
            encoders.build_bpe(Namespace(bpe="wordpiece", wordpiece_model=value))


def test_only_the_most_frequent_characters_are_symbols(tmp_path, monkeypatch):
    monkeypatch.setattr(bert_wordpiece, "_ALPHABET", 3)
    (tmp_path / "t").write_text("bb ba cb cc dd aa x y Bb\n")
    vocabulary = bert_wordpiece.train(tmp_path / "t", 12, False)
    assert vocabulary[:11] == [*bert_wordpiece.SPECIAL, "##a", "##b", "##c", "a", "b", "c"]
    assert vocabulary[11:] == ["bb"]


def test_the_vocabulary_does_not_depend_on_the_run(tmp_path):
    """Left to itself the trainer takes characters, and ties with them, in the order of a hash table."""
    (tmp_path / "t").write_text("abcdefghijklmnop ponmlkjihgfedcba qrstuvwxyz zyxwvutsrq\n" * 2)
    first, *others = (bert_wordpiece.train(tmp_path / "t", 70, False) for _ in range(4))
    assert len(first) == 70
    assert others == [first] * 3


def test_hub_fills_masks_with_pieces_of_words(tmp_path):
    """A piece that goes on stands at the word before; an untrained model tries every one of them."""
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    from fairseq_transnorm.models.masked_lm_hub import MaskedLMHub

    bpe_of(tmp_path, HEAD + PIECES)
    (tmp_path / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in PIECES), encoding="utf-8")
    flags = [str(tmp_path), "--arch", "transnormer_mlm_tiny", "--tokens-per-sample", "64", "--bpe", "wordpiece"]
    flags += ["--wordpiece-model", str(tmp_path / bert_wordpiece.MODEL_FILE)]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser("masked_lm"), flags))
    task = tasks.setup_task(cfg.task)
    hub = MaskedLMHub(cfg, task, task.build_model(cfg.model))
    assert hub.decode(hub.encode("Unaffable!", "not")) == ["unaffable !", "not"]
    filled = {piece: text for text, _, piece in hub.fill_mask("do un <mask> !", topk=len(PIECES))}
    assert filled == {p: f"do un{p[2:]} !" if p.startswith("##") else f"do un {p} !" for p in PIECES}
