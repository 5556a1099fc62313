"""Options, markers and fixtures of all tests."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock
from jaxtyping import install_import_hook

from tests.helpers import build_lm_data

# Shapes and types in annotations are checked in the tests only. The hook must be there before the package is imported.
install_import_hook("fairseq_transnorm.modules", "beartype.beartype")

hypothesis.settings.register_profile("default", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

# A shell starts what is in the background with SIGINT ignored, and processes inherit that; our tests interrupt some.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden/*.json with what is measured now"
    )
    parser.addoption("--net", action="store_true", help="also run the tests that need a network")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run here and say what is missing."""
    import torch

    skips = {
        "gpu": None if torch.cuda.is_available() else "needs a CUDA device",
        "net": None if config.getoption("--net") else "needs a network: pass --net",
    }
    for item in items:
        for marker, reason in skips.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return ``check(name, got, rtol=1e-6)``, which compares numbers with those kept in ``tests/golden/name.json``."""

    def check(name: str, got: object, rtol: float = 1e-6) -> None:
        path = Path(__file__).parent / "golden" / f"{name}.json"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(got, indent=1) + "\n")
        assert path.is_file(), f"no {path}; write it with --update-golden"
        assert got == pytest.approx(json.loads(path.read_text()), rel=rtol), f"{path.name}: --update-golden if intended"

    return check


@pytest.fixture(scope="session")
def tiny_lm_data(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Folder of a binarised corpus (300 + 40 + 40 sentences, about 90 words); its parent has the ``.txt`` splits.

    Built once for all workers of pytest-xdist. Read it only.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if hasattr(request.config, "workerinput") else base
    folder = shared / "tiny_lm"
    with FileLock(shared / "tiny_lm.lock"):
        done = folder / "done"
        if not done.exists():
            build_lm_data(folder)
            done.touch()
    return folder / "data-bin"
