"""Formal languages written down symbol by symbol and cell by cell: what the package's must agree with.

Nothing here imports the package. Inputs are strings, outputs lists of strings, target matrices lists of rows.
"""

import random
import re
import string

MASTER = string.ascii_lowercase + string.ascii_uppercase + string.digits + string.punctuation + " \t\n\r\x0b\x0c"
PAIRS = ["()", "{}", "[]", "<>", "\\/", "`'", "ab", "xy"]
SUPERVISED = ("sort", "hist2", "sort_by_freq")
TASKS = ("reverse", "hist", *SUPERVISED)
NEUTRAL = "§"
NAMES = [
    f"{task}_{size}{bos}{attns}"
    for task in TASKS
    for size in (10, 26, 52, 100)
    for bos in ("", "_bos")
    for attns in ("", "_with_attns")
    if not attns or task in SUPERVISED
] + [f"dyck{k}_ptf{bos}" for k in range(1, 9) for bos in ("", "_bos")]


def parts(name):
    """Return task, number (alphabet size or k), whether BOS."""
    match = re.fullmatch(r"(dyck)(\d)_ptf(_bos)?|(\w+?)_(\d+)(_bos)?(_with_attns)?", name)
    dyck, k, dyck_bos, task, size, bos, _ = match.groups()
    return (dyck, int(k), bool(dyck_bos)) if dyck else (task, int(size), bool(bos))


def neutral_of(k):
    return "a" if k < 7 else "n"


def alphabet(name):
    task, number, _ = parts(name)
    return "".join(PAIRS[:number]) + neutral_of(number) if task == "dyck" else MASTER[:number]


def classes(name):
    task, _, bos = parts(name)
    if task == "dyck":
        found = ["P", "T", "F"]
    elif task in ("hist", "hist2"):
        found = [str(number) for number in range(11)]
    else:
        found = list(alphabet(name))
    if task == "sort_by_freq" or bos:
        found.append(NEUTRAL)
    return found


def sample(name, index, low=1, high=100):
    """Return sequence ``index`` without BOS, drawn with Python's global generator, which is put back."""
    state = random.getstate()
    try:
        task, k, _ = parts(name)
        random.seed(index)
        if task != "dyck" or index % 3 == 2:
            return "".join(random.choice(alphabet(name)) for _ in range(random.randint(low, high)))
        length, text = random.randint(low, high), ""
        while len(text) < length:
            place = random.choice(list(range(len(text) + 1)))
            inserted = random.choice([neutral_of(k)]) if random.random() < 0.3 else random.choice(PAIRS[:k])
            text = text[:place] + inserted + text[place:]
        if index % 3 == 1:
            m = random.choice(list(range(len(text) + 1)))
            text = text[:m] + "".join(random.choice(alphabet(name)) for _ in range(len(text) - m))
        return text
    finally:
        random.setstate(state)


def dyck_label(prefix, k):
    """Return the label of one prefix, from nothing but itself."""
    rest = prefix.replace(neutral_of(k), "")
    while (shorter := re.sub("|".join(re.escape(pair) for pair in PAIRS[:k]), "", rest)) != rest:
        rest = shorter
    if not rest:
        return "T"
    return "P" if all(symbol in [pair[0] for pair in PAIRS[:k]] for symbol in rest) else "F"


def outputs(name, s):
    """Return the outputs for a sequence without BOS."""
    task, k, _ = parts(name)
    n = len(s)
    if task == "dyck":
        return [dyck_label(s[: i + 1], k) for i in range(n)]
    if task == "reverse":
        return [s[n - 1 - i] for i in range(n)]
    if task == "hist":
        return [str(min(10, sum(s[j] == s[i] for j in range(n)))) for i in range(n)]
    if task == "hist2":
        return [str(min(10, len({c for c in s if s.count(c) == s.count(s[i])}))) for i in range(n)]
    left, done = list(s), []
    while task == "sort" and left:
        done.append(left.pop(left.index(chr(min(ord(c) for c in left)))))
    while task == "sort_by_freq" and left:
        best = left[0]
        for c in left:
            if s.count(c) > s.count(best) or (s.count(c) == s.count(best) and s.index(c) < s.index(best)):
                best = c
        done.append(best)
        left = [c for c in left if c != best]
    return done + [NEUTRAL] * (n - len(done))


def target_matrices(name, s):
    """Return (layer, head), the matrix and the constant of the BOS column, for a sequence without BOS."""
    task, _, _ = parts(name)
    n = len(s)

    def matrix(cell):
        return [[int(cell(q, k)) for k in range(n)] for q in range(n)]

    def h(i):
        return s.count(s[i])

    def is_first(i):
        return s.index(s[i]) == i

    same = matrix(lambda q, k: s[q] == s[k])
    same_before = matrix(lambda q, k: s[q] == s[k] and k < q)
    if task == "sort":
        smaller = matrix(lambda q, k: ord(s[k]) < ord(s[q]) or (s[k] == s[q] and k < q))
        return [((0, 0), smaller, 1), ((1, 0), matrix(lambda q, k: q == sum(smaller[k])), 0)]
    if task == "hist2":
        sharing = matrix(lambda q, k: h(k) == h(q) and is_first(k))
        return [((0, 0), same, 1), ((0, 1), same_before, 1), ((1, 0), sharing, 1)]
    if task == "sort_by_freq":
        g = [h(i) if is_first(i) else h(i) - 202 for i in range(n)]
        above = matrix(lambda q, k: g[k] > g[q] or (g[k] == g[q] and k < q))
        placed = matrix(lambda q, k: q == sum(above[k]))
        return [((0, 0), same, 1), ((0, 1), same_before, 1), ((1, 0), above, 1), ((2, 0), placed, 1)]
    return []


def with_bos(matrix, column):
    """Return a matrix with the row and the column of BOS."""
    return [[1] + [0] * len(matrix)] + [[column, *row] for row in matrix]


def expected(name, s):
    """Return what a model gets and should answer: input symbols, targets, and the target matrices."""
    bos = parts(name)[2]
    matrices = [with_bos(matrix, column) if bos else matrix for _, matrix, column in target_matrices(name, s)]
    return [NEUTRAL] * bos + list(s), [NEUTRAL] * bos + outputs(name, s), matrices
