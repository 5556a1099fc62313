"""What the command lines that run fairseq inside have in common."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence


def quiet() -> None:
    """Keep fairseq's notes and the library warnings that it causes off the terminal; what it logs as wrong stays."""
    for name in ("", "fairseq", "fairseq_cli"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if sys.stderr.isatty():
        logging.getLogger("fairseq.logging.progress_bar").setLevel(logging.INFO)  # else there is no bar
    warnings.simplefilter("ignore")


def run_command(prog: str, main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Call ``main(argv)``, return the exit status; a wrong file or value ends in one line on standard error and 1."""
    try:
        quiet()
        main(argv)
    except (OSError, ValueError, ImportError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    return 0
