"""Perplexity of a language model by both conventions, each by its name, through fairseq-eval-lm's own code.

``python -m fairseq_transnorm.measure.perplexity CHECKPOINT DATA [--json FILE] [fairseq-eval-lm flags]``

* ``blocks``: the text is cut into blocks of ``--tokens-per-sample`` tokens, which share no context. It is what
  validation during training computes.
* ``context_window``: the text is read in steps of ``--tokens-per-sample`` minus ``--context-window`` tokens, and each
  token sees at least ``--context-window`` tokens before it (those at the start of the text see what there is).

They differ by about one point of perplexity on WikiText-103, and a published figure does not always say which it is.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq import options as fairseq_options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks.masked_lm import MaskedLMTask

from .checkpoints import Run, load_run
from .commands import run_command
from .evaluation import LOGITS, count_tokens, evaluation_parser, write_rows

PROG = "perplexity"
BLOCKS, CONTEXT_WINDOW = "blocks", "context_window"
PAPER_LENGTH, PAPER_WINDOW = 512, 400  # tokens


def default_window(tokens_per_sample: int) -> int:
    """Return the context window, 400 tokens for blocks of 512 and the same share of other lengths."""
    return tokens_per_sample * PAPER_WINDOW // PAPER_LENGTH


class _EvaluatedTokens(logging.Handler):
    """Catches the number of tokens, which fairseq-eval-lm tells nowhere but in its log."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.search(r"Evaluated ([\d,]+) tokens", record.getMessage()):
            self.tokens = int(found[1].replace(",", ""))


def evaluate(
    run: Run, subset: str, tokens_per_sample: int, context_window: int, flags: Sequence[str] = ()
) -> dict[str, Any]:
    """Run fairseq-eval-lm once and return its result as a row of numbers.

    Args:
        run: the model, with the data folder to evaluate on in its config.
        subset: split of the data.
        tokens_per_sample: longest stretch of text that the model sees, in tokens.
        context_window: 0 for the convention ``blocks``, else at least so many tokens are seen before each one.
        flags: more flags for fairseq-eval-lm; they win.

    Raises:
        ValueError: fairseq would leave out a part of the text, as it does with sequences longer than the positions.
    """
    from fairseq_cli import eval_lm  # here, since importing it sets up logging

    new_tokens = tokens_per_sample - context_window  # tokens of a row that are scored
    room = min(36000, LOGITS // len(run.task.target_dictionary)) * new_tokens // tokens_per_sample
    arguments = [run.cfg.task.data, "--task", "language_modeling", "--path", str(run.path), "--gen-subset", subset]
    arguments += ["--tokens-per-sample", str(tokens_per_sample), "--context-window", str(context_window)]
    arguments += ["--max-tokens", str(max(room, new_tokens))]
    arguments += ["--add-bos-token"] if run.cfg.task.get("add_bos_token", False) else []
    parser = fairseq_options.get_eval_lm_parser()
    cfg = convert_namespace_to_omegaconf(fairseq_options.parse_args_and_arch(parser, [*arguments, *flags]))

    counter = _EvaluatedTokens()
    eval_lm.logger.addHandler(counter)
    eval_lm.logger.propagate = False
    eval_lm.logger.setLevel(logging.INFO)
    try:
        result = eval_lm.main(cfg)
    finally:
        eval_lm.logger.removeHandler(counter)
    tokens = count_tokens(run, subset)
    if counter.tokens < tokens:
        raise ValueError(
            f"only {counter.tokens:,} of the {tokens:,} tokens of split {subset!r} would count: fairseq leaves out "
            f"sequences longer than the {run.model.max_positions()} positions of {run.path}; --tokens-per-sample is "
            f"{tokens_per_sample}, try {run.model.max_positions()}"
        )
    bits = float(result["loss"])
    return {
        "subset": subset,
        "convention": CONTEXT_WINDOW if context_window else BLOCKS,
        "context_window": context_window,
        "tokens_per_sample": tokens_per_sample,
        "tokens": tokens,
        "loss_nats": bits * math.log(2),
        "loss_bits": bits,
        "perplexity": 2.0**bits,
    }


def measure(
    checkpoint: str | Path,
    data: str | Path,
    subsets: Sequence[str] = ("valid", "test"),
    tokens_per_sample: int | None = None,
    context_window: int | None = None,
    flags: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return one row a split and convention.

    Args:
        checkpoint: ``.pt`` file of a language model.
        data: data folder; its dictionary must be that of the training.
        subsets: splits to evaluate.
        tokens_per_sample: default that of the training.
        context_window: default see :func:`default_window`; 0 leaves that convention out.
        flags: more flags for fairseq-eval-lm.

    Raises:
        FileNotFoundError: the checkpoint, the data folder or a split is missing.
        ValueError: a broken checkpoint, a masked language model, another dictionary, lengths that do not fit, or text
            that would not count.
    """
    run = load_run(checkpoint, data)
    if isinstance(run.task, MaskedLMTask):
        raise ValueError(f"{checkpoint} is a masked language model; for those there is scripts/eval_blm.sh")
    length = run.cfg.task.tokens_per_sample if tokens_per_sample is None else tokens_per_sample
    window = default_window(length) if context_window is None else context_window
    if length < 1:
        raise ValueError(f"--tokens-per-sample {length} must be at least 1")
    if not 0 <= window < length:
        raise ValueError(f"--context-window {window} must be from 0 to below --tokens-per-sample, which is {length}")
    for subset in subsets:
        count_tokens(run, subset)
    windows = [0, window] if window else [0]
    return [evaluate(run, subset, length, w, flags) for subset in subsets for w in windows]


def sentence(row: dict[str, Any]) -> str:
    """Say one row in words."""
    what = f"blocks of {row['tokens_per_sample']} tokens without shared context"
    if row["context_window"]:
        what = f"context window of {row['context_window']} tokens within {row['tokens_per_sample']}"
    return (
        f"{row['subset']:6} {row['perplexity']:10.3f} perplexity   {row['loss_nats']:.4f} nats, {row['loss_bits']:.4f} "
        f"bits per token   {row['tokens']:,} tokens   {what}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate and print; see ``--help``."""
    parser = evaluation_parser(PROG, __doc__)
    parser.add_argument(
        "--context-window",
        type=int,
        metavar="N",
        help=f"default: {PAPER_WINDOW} where sequences have {PAPER_LENGTH} tokens, else in proportion; 0: blocks only",
    )
    options, flags = parser.parse_known_args(argv)
    rows = measure(
        options.checkpoint,
        options.data,
        options.gen_subset.split(","),
        options.tokens_per_sample,
        options.context_window,
        flags,
    )
    print("\n".join(map(sentence, rows)))
    if options.json:
        write_rows(options.json, rows)


if __name__ == "__main__":
    sys.exit(run_command(PROG, main))
