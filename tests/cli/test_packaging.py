"""The wheel: built for real, unpacked elsewhere, imported from another folder."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT, run_cli

PACKAGE = "fairseq_transnorm"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of what git would hold of the tree; built in a copy, so that no build folder is left or reused."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    run_cli("python", "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def tree(pattern: str) -> set[str]:
    found = (path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob(pattern))
    return {name for name in found if "__pycache__" not in name}


def test_the_wheel_holds_the_package_and_nothing_else(names):
    assert {name.split("/")[0].split("-")[0] for name in names} == {PACKAGE}
    assert {name for name in names if name.endswith(".py")} == tree("*.py")


def test_the_wheel_carries_configs_types_and_licence(names):
    assert tree("*.yaml"), "no YAML in the tree"
    assert {name for name in names if name.endswith(".yaml")} == tree("*.yaml")
    assert f"{PACKAGE}/py.typed" in names
    assert any(name.endswith("/LICENSE") and ".dist-info/" in name for name in names)


def test_the_metadata_name_version_licence_and_extras(wheel, names):
    (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    for line in ("Name: fairseq_transnorm", "Version: 0.1.0", "Requires-Python: <3.13,>=3.11"):
        assert line in text.splitlines()
    assert "MIT" in text
    extras = {line.split(": ")[1] for line in text.splitlines() if line.startswith("Provides-Extra")}
    assert extras == {"text", "data", "hf", "log", "gpu", "dev"}


def test_it_works_from_another_folder_without_the_repository(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    # No index: only the wheel itself. PYTHONPATH comes before an editable install of the repository.
    run_cli("python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    found = run_cli("python", "-m", PACKAGE, "--user-dir", cwd=elsewhere, env={"PYTHONPATH": target}).stdout
    assert Path(found.splitlines()[-1]) == target / PACKAGE
    shown = run_cli("python", "-m", PACKAGE, cwd=elsewhere, env={"PYTHONPATH": target}).stdout
    assert "transnormer_lm_tiny" in shown
