"""Imports point one way; entry points import the package and nobody edits ``sys.path``."""

import ast
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGE = "fairseq_transnorm"
# A part may import the parts of its own level and below.
LEVELS = {
    "whole_file": 0,
    "interrupts": 0,
    "modules": 0,
    "theory": 0,
    "registry": 1,
    "checkpointing": 1,
    "processes": 1,
    "models": 1,
    "tasks": 1,
    "criterions": 1,
    "optim": 1,
    "data": 1,
    "measure": 2,
    "__init__": 2,  # importing the whole package registers it, which measure needs to read checkpoints
    "__main__": 3,
    "train_rasp": 3,
}
# Measures that are plain torch, like modules/, and that training logs too.
PLAIN = ["parameters", "hidden_states", "scaling", "saturation", "json_lines", "growth_log"]
PLAIN += ["own_attention", "copying", "memory_probes", "probe_log", "epoch_log"]
PLAIN_MEASURES = {f"measure.{name}" for name in PLAIN}
ENTRY_FOLDERS = ("analysis", "preprocessing", "scripts")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """All absolute dotted names that a file imports anywhere in it; ``from a import b`` counts as ``a.b``."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = [*package[: len(package) - node.level + 1]] if node.level else []
            base = ".".join(start + ([node.module] if node.module else []))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def part(name: str) -> str | None:
    """The part of the package that a dotted name lies in; None for another package."""
    pieces = name.split(".")
    if pieces[0] != PACKAGE:
        return None
    if ".".join(pieces[1:3]) in PLAIN_MEASURES:
        return "modules"
    return pieces[1] if len(pieces) > 1 else "__init__"


def top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def own_part(path: Path) -> str:
    return part(".".join(path.relative_to(ROOT).with_suffix("").parts)) or ""


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", python_files(PACKAGE), ids=ids)
def test_the_package_imports_downwards_only(path):
    own, names = own_part(path), imported(path)
    if own in ("modules", "theory", "plotting"):
        assert not top(names) & {"fairseq", "fairseq_cli"}, "plain torch inside, fairseq at the edge"
    parts = {p for name in names if (p := part(name))}
    if own == "plotting":
        assert "torch" not in top(names), "plotting draws tables of numbers"
        assert parts <= {"plotting", "__init__", "__version__"}, "plotting depends on no other part"
        return
    assert own in LEVELS, f"{own} has no level yet: give it one in {Path(__file__).name}"
    upwards = {p for p in parts - {"__version__", "USER_DIR"} if LEVELS.get(p, 9) > LEVELS[own]}
    assert not upwards, f"{own} (level {LEVELS[own]}) imports {sorted(upwards)}"


@pytest.mark.parametrize("path", python_files(f"{PACKAGE}/models"), ids=ids)
def test_no_system_imports_another(path):
    models = ROOT / PACKAGE / "models"
    inside = path.relative_to(models).parts
    used = {name.split(".")[2] for name in imported(path) if name.startswith(f"{PACKAGE}.models.")}
    shells = {file.stem for file in models.glob("*.py")}  # what several systems build on
    if inside != ("__init__.py",):  # which imports all of them
        own = {inside[0]} if len(inside) > 1 else set()
        assert used - shells <= own, "what two systems need moves down to modules/, data/ or a shell in models/"


@pytest.mark.parametrize("path", python_files(*ENTRY_FOLDERS), ids=ids)
def test_entry_points_import_only_the_package(path):
    assert not top(imported(path)) & {*ENTRY_FOLDERS, "tests"}, "importable code belongs in the package"


@pytest.mark.parametrize("path", python_files(PACKAGE, *ENTRY_FOLDERS, "tests"), ids=ids)
def test_nobody_edits_the_import_path(path):
    edits = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
    ]
    assert not edits, "one name, one path: the same file under two names is registered twice"


def test_the_import_walk_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / PACKAGE / "models" / "some" / "lm.py"
    path.parent.mkdir(parents=True)
    path.write_text("import a.b\nfrom . import config\nfrom ...modules.norms import X\ndef f():\n    from c import d\n")
    prefix = f"{PACKAGE}.models.some.config"
    assert imported(path) == {"a.b", prefix, f"{PACKAGE}.modules.norms.X", "c.d"}
    assert part(prefix) == "models"
