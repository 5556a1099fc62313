"""Formal languages by hand: outputs, attention targets, names, symbols, and how one is added."""

import doctest
from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch

from fairseq_transnorm.data import languages
from fairseq_transnorm.data.languages import definition
from fairseq_transnorm.data.languages.patterns import placed
from tests import rasp_reference as slow

MODULES = [module.name for module in iter_modules(languages.__path__)]

OUTPUTS = {
    "reverse_10": {"dbbda": "a d b b d", "ccacbb": "b b c a c c", "cabacd": "d c a b a c"},
    "hist_10": {"dbbda": "2 2 2 2 1", "ccacbb": "3 3 1 3 2 2", "cabacd": "2 2 1 2 2 1", "a" * 12: "10 " * 12},
    "sort_10": {"dbbda": "a b b d d", "ccacbb": "a b b c c c", "cabacd": "a a b c c d"},
    "hist2_10": {"dbbda": "2 2 2 2 1", "ccacbb": "1 1 1 1 1 1", "cabacd": "2 2 2 2 2 2"},
    "hist2_26": {"abcdefghijkl": "10 " * 12},
    "sort_by_freq_10": {"dbbda": "d b a § §", "ccacbb": "c b a § § §", "cabacd": "c a b d § §", "abb": "b a §"},
    "sort_52": {"aBbA": "A B a b"},
    "sort_100": {"a!B0": "! 0 B a"},
    "reverse_10_bos": {"ba": "§ a b", "§ba": "§ a b"},
    "hist_10_bos": {"ba": "§ 1 1"},
    "sort_10_bos": {"ba": "§ a b"},
    "hist2_10_bos": {"ba": "§ 2 2"},
    "sort_by_freq_10_bos": {"ba": "§ b a"},
    "dyck1_ptf": {"(a)": "P P T", ")(": "F F", "a": "T", "((": "P P"},
    "dyck2_ptf": {"a({})": "T P P P T", "({)}a": "P P F F F", "()a{": "P T T P"},
    "dyck2_ptf_bos": {"a(": "§ T P"},
    "dyck7_ptf": {"anb": "P P T", "b": "F"},
    "dyck8_ptf": {"x\\/y`'": "P P P T P T"},
}
DBBDA = {  # rows of the matrices for "dbbda"
    "sort_10": ["01101 00001 01001 11101 00000", "00001 01000 00100 10000 00010"],
    "hist2_10": [
        "10010 01100 01100 10010 00001",
        "00000 00000 01000 10000 00000",
        "11000 11000 11000 11000 00001",
    ],
    "sort_by_freq_10": [
        "10010 01100 01100 10010 00001",
        "00000 00000 01000 10000 00000",
        "00000 10000 11001 11101 11000",
        "10000 01000 00001 00100 00010",
    ],
}
BOS_COLUMNS = {"sort_10": "10", "hist2_10": "111", "sort_by_freq_10": "1111"}


def matrices(language, text):
    """Rows of the target matrices, each matrix as one string."""
    tokens = torch.tensor([language.encode(text)])
    found = language.attention_targets(tokens, torch.tensor([tokens.shape[1]]))[0].int().tolist()
    return [" ".join("".join(map(str, row)) for row in matrix) for matrix in found]


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_by_hand(name):
    language = languages.get(name)
    for text, outputs in OUTPUTS[name].items():
        assert language.outputs(text) == outputs.split()
        assert set(outputs.split()) <= set(language.classes)
        assert len(language.encode(text)) == len(outputs.split())


@pytest.mark.parametrize("name", DBBDA)
def test_attention_targets_by_hand(name):
    assert matrices(languages.get(name), "dbbda") == DBBDA[name]
    supervised = languages.get(f"{name}_bos_with_attns")
    wanted = [
        " ".join(["100000", *(column + row for row in matrix.split())])
        for matrix, column in zip(DBBDA[name], BOS_COLUMNS[name], strict=True)
    ]
    assert matrices(supervised, "dbbda") == matrices(supervised, "§dbbda") == wanted


def test_attention_targets_follow_code_points_not_the_alphabet():
    """In the alphabet small letters come first."""
    assert matrices(languages.get("sort_52"), "aB") == ["01 00", "01 10"]


def test_padding_has_no_target_and_changes_none():
    for name in (f"{name}{bos}" for name in DBBDA for bos in ("", "_bos")):
        language = languages.get(name)
        one, other = language.encode("ab"), language.encode("dbbda")
        padding = [len(language.symbols)] * (len(other) - len(one))
        lengths = torch.tensor([len(one), len(other)])
        found = language.attention_targets(torch.tensor([one + padding, other]), lengths)
        assert not found[0, :, len(one) :].any()
        assert not found[0, :, :, len(one) :].any()
        alone = language.attention_targets(torch.tensor([one]), lengths[:1])
        assert found[0, :, : len(one), : len(one)].equal(alone[0])


def test_names_are_the_usable_ones():
    """Of these tasks; who adds another need not change this."""
    tasks = {*slow.TASKS, *(f"dyck{k}_ptf" for k in range(1, 9))}
    ours = [language for language in languages.every() if language.task in tasks]
    assert sorted(language.name for language in ours) == sorted(slow.NAMES)
    assert len(ours) == 80
    for language in ours:
        assert languages.get(language.name) is language
        assert "".join(language.alphabet) == slow.alphabet(language.name)
        assert language.symbols == (*language.alphabet, "§")
        assert list(language.classes) == slow.classes(language.name)
        assert language.bos == ("_bos" in language.name)
        assert language.supervised == language.name.endswith("_with_attns")
        assert language.program_heads == tuple(head for head, _, _ in slow.target_matrices(language.name, "ab"))
        size = {"sort": (2, 1), "hist2": (2, 2), "sort_by_freq": (3, 2)}.get(language.task, (0, 0))
        assert language.needs == size
        assert language.longest(100) == 100 + language.bos + language.task.startswith("dyck")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("revrese_26", "unknown language 'revrese_26'; did you mean 'reverse_26'. `python preprocessing/languages.py"),
        ("dyck9_ptf", "unknown language 'dyck9_ptf'; did you mean 'dyck"),
        ("reverse_26_with_attn", "did you mean 'reverse_26'. "),
        ("sort_26_with_attn", "did you mean 'sort_26_with_attns'. "),
        ("sort_by_freq_26_bs", "did you mean 'sort_by_freq_26_bos'. "),
        ("hist2_50", "did you mean 'hist2_52'. "),
        ("qqqq", "unknown language 'qqqq'; `python preprocessing/languages.py list` shows all"),
        (
            "reverse_26_with_attns",
            "reverse has no attention targets, only hist2, .*sort, .*have; take 'reverse_26'",
        ),
        ("dyck1_ptf_bos_with_attns", "dyck1_ptf has no attention targets, .* take 'dyck1_ptf_bos'"),
    ],
)
def test_a_name_that_is_not_there(name, message):
    with pytest.raises(ValueError, match=message) as raised:
        languages.get(name)
    assert "\n" not in str(raised.value)


def test_symbols_that_are_not_there():
    bos, bare = languages.get("sort_10_bos"), languages.get("sort_10")
    assert bos.encode("ba") == bos.encode("§ba") == [10, 1, 0]
    assert (bos.with_bos("ba"), bos.with_bos("§ba"), bare.with_bos("ba")) == ("§ba", "§ba", "ba")
    with pytest.raises(
        ValueError, match=r"'X', ' ' in 'aXb X' is not in the alphabet of sort_10_bos; use 'abcdefghij'"
    ):
        bos.encode("aXb X")
    with pytest.raises(ValueError, match=r"'§' in '§ba' is not in the alphabet .*only of languages with _bos"):
        bare.encode("§ba")
    for text in ("b§a", "§§a", "§§§a"):
        with pytest.raises(ValueError, match=rf"'§' in '{text}' is not in the alphabet .*only once, at the front\)"):
            bos.encode(text)
    for text in ("", "§"):
        with pytest.raises(ValueError, match="an empty sequence for sort_10_bos"):
            bos.encode(text)
    with pytest.raises(ValueError, match="reverse, the task of reverse_10, has no attention targets"):
        languages.get("reverse_10").attention_targets(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1))


def test_whitespace_can_be_seen():
    shown = [languages.visible(symbol) for symbol in "a§\\' \t\n\r\v\f"]
    assert shown == ["a", "§", "\\", "'", "' '", "\\t", "\\n", "\\r", "\\x0b", "\\x0c"]


@pytest.mark.parametrize("name", MODULES)
def test_the_example_of_every_module_is_true(name):
    module = import_module(f"{languages.__name__}.{name}")
    found = doctest.testmod(module)
    assert found.attempted, f"show an example, an input and its output, in {module.__file__}"
    assert not found.failed


@pytest.fixture
def own_languages(monkeypatch):
    """Languages registered in a test go with it."""
    monkeypatch.setattr(definition, "_languages", dict(definition._languages))


def test_a_language_is_one_registered_function(own_languages):
    @languages.language(alphabets={"_abc": "abc"}, filler=True, heads={(0, 0): False}, attention=before)
    def shift(text):
        return [languages.BOS, *text[:-1]]

    assert languages.names()[-4:] == [f"shift_abc{end}" for end in ("", "_with_attns", "_bos", "_bos_with_attns")]
    language = languages.get("shift_abc_bos_with_attns")
    assert language.outputs("abc") == ["§", "§", "a", "b"]
    assert (language.classes, language.needs) == (("a", "b", "c", "§"), (1, 1))
    assert matrices(language, "abc") == ["1000 0000 0100 0010"]
    assert not languages.get("shift_abc_bos").supervised


def before(codes, real):
    return [placed(torch.arange(codes.shape[1]).expand_as(codes) + 1)]


def test_what_cannot_be_registered(own_languages):
    with pytest.raises(ValueError, match="language sort_10 is registered already; give the task another name"):
        languages.language(name="sort")(sorted)
    for alphabet in ("aba", "a§", ""):
        with pytest.raises(ValueError, match=f"language x_1: the alphabet '{alphabet}' must have symbols, each once"):
            languages.language(name="x", alphabets={"_1": alphabet})(list)
    with pytest.raises(ValueError, match="heads and attention go together"):
        languages.language(heads={(0, 0): True})
    languages.language(name="short", alphabets={"": "ab"})(lambda text: text[1:])
    with pytest.raises(ValueError, match="short returned 1 outputs for the 2 symbols of 'ab'; a task returns one for"):
        languages.get("short").outputs("ab")
    languages.language(name="idle", alphabets={"": "ab"}, heads={(0, 0): True, (1, 0): True}, attention=before)(list)
    with pytest.raises(ValueError, match="idle made 1 target matrices for its 2 heads"):
        matrices(languages.get("idle"), "ab")
