"""Text from a language model, through fairseq-interactive's own code.

``python -m fairseq_transnorm.measure.samples CHECKPOINT DATA --prompt TEXT [fairseq-interactive flags]``

A text begins with its prompt and ends where the model ends the line, or after ``--length`` further tokens. With
``--go-on`` it has exactly so many tokens, on as many lines as they take; fairseq-interactive cannot do that, so its
generator is called from here. Tokens are drawn from the 50 likeliest at each step; ``--beam`` searches for a likely
text instead. The same call gives the same text, another ``--seed`` another one.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq import options as fairseq_options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from ..data.binarize import NOTE, bpe_args
from .checkpoints import Run, load_run
from .commands import run_command
from .describe import describe

PROG = "samples"


def search_flags(flags: Sequence[str]) -> list[str]:
    """Return fairseq's flags that choose tokens, as far as the user's flags leave that open."""
    names = {flag.partition("=")[0] for flag in flags}
    if "--beam" in names and "--sampling" not in names:
        return []
    truncated = {"--sampling-topk", "--sampling-topp"} & names
    number = [] if "--beam" in names else ["--beam", "1", "--nbest", "1"]
    return ["--sampling", *number, *([] if truncated else ["--sampling-topk", "50"])]


def length_flags(run: Run, prompts: Sequence[str], length: int, shortest: int) -> list[str]:
    """Return fairseq's flags that make room for ``length`` tokens after each prompt.

    Where positions are computed, the model's limit is raised beyond its training length; where they are learned, a text
    ends at the last of them.

    Raises:
        ValueError: ``length`` is below 1 or ``shortest``, or the positions are learned and too few.
    """
    if not 1 <= shortest <= length:
        raise ValueError(f"--length {length} and --min-len {shortest} must be at least 1, and the latter no larger")
    facts = describe(run)
    # fairseq counts the </s> before the prompt, and adds one at the end
    flags = ["--max-len-a", "1", "--max-len-b", str(length - 1), "--min-len", str(shortest)]
    longest = max(len(prompt.encode()) for prompt in prompts)  # a token is at least a byte
    if not facts["learned_positions"]:
        room = max(facts["max_positions"], longest + length + 8)
        return [*flags, "--model-overrides", f"{{'max_target_positions': {room}}}"]
    if length >= facts["max_positions"]:
        raise ValueError(
            f"--length {length} does not fit: the positions of {run.path} are learned, {facts['max_positions']} of them"
        )
    return flags


class _Texts(io.TextIOBase):
    """Passes on the text of fairseq-interactive's lines ``D-number<tab>score<tab>text``."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.rest = ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if line.startswith("D-"):
                self.out.write(line.split("\t", 2)[2] + "\n")
                self.out.flush()
        return len(text)


def _interactive(cfg: Any, prompts: Sequence[str], raw: bool) -> None:
    from fairseq_cli import interactive  # here, since importing it sets up logging

    with tempfile.TemporaryDirectory() as folder:
        cfg.interactive.input = os.path.join(folder, "prompts.txt")
        Path(cfg.interactive.input).write_text("".join(prompt + "\n" for prompt in prompts), encoding="utf-8")
        with contextlib.redirect_stdout(sys.stdout if raw else _Texts(sys.stdout)):
            interactive.main(cfg)


def _go_on(cfg: Any, prompts: Sequence[str], length: int) -> None:
    """Print texts of ``length`` new tokens each: ``</s>`` ends a line, and ``<s>``, which never comes, the text."""
    task = tasks.setup_task(cfg.task)
    overrides = ast.literal_eval(cfg.common_eval.model_overrides)
    models, _ = checkpoint_utils.load_model_ensemble([cfg.common_eval.path], overrides, task)
    device = "cuda" if torch.cuda.is_available() and not cfg.common.cpu else "cpu"
    for model in models:
        model.to(device).prepare_for_inference_(cfg)
    coders = [coder for coder in (task.build_tokenizer(cfg.tokenizer), task.build_bpe(cfg.bpe)) if coder is not None]
    dictionary = task.target_dictionary
    end = dictionary.eos()
    utils.set_torch_seed(cfg.common.seed)
    for prompt in prompts:
        text = prompt
        for coder in coders:
            text = coder.encode(text)
        prefix = dictionary.encode_line(text, append_eos=False, add_if_not_exist=False).long().to(device)
        source = torch.cat([prefix.new_tensor([end]), prefix])[None]
        total = len(prefix) + length
        cfg.generation.max_len_a, cfg.generation.max_len_b, cfg.generation.min_len = 0, total, total
        generator = task.build_generator(models, cfg.generation, extra_gen_cls_kwargs={"eos": dictionary.bos()})
        sample = {"net_input": {"src_tokens": source, "src_lengths": source.new_tensor([source.shape[1]])}}
        best = generator.generate(models, sample, prefix_tokens=prefix[None] if len(prefix) else None, bos_token=end)
        lines: list[list[int]] = [[]]
        for token in best[0][0]["tokens"].tolist()[:-1]:
            lines.append([]) if token == end else lines[-1].append(token)
        for line in lines:
            text = dictionary.string(line)
            for coder in reversed(coders):
                text = coder.decode(text)
            print(text, flush=True)


def sample(
    checkpoint: str | Path,
    data: str | Path,
    prompts: Sequence[str],
    length: int = 200,
    shortest: int = 1,
    flags: Sequence[str] = (),
    raw: bool = False,
    go_on: bool = False,
) -> None:
    """Print a text for each prompt.

    Args:
        checkpoint: ``.pt`` file of a language model.
        data: data folder, with the dictionary and tokeniser of the training.
        prompts: beginnings, a line each; may be empty.
        length: most tokens to add.
        shortest: the model may not end the line before so many tokens, prompt included.
        flags: more flags for fairseq-interactive; they win.
        raw: print all that fairseq-interactive prints: source, scores, symbols.
        go_on: go on after the end of a line, until there are ``length`` new tokens, the ends of lines included.

    Raises:
        ValueError: ``raw`` and ``go_on``, or lengths that do not fit.
    """
    if raw and go_on:
        raise ValueError("--raw shows what fairseq-interactive prints, which --go-on does without; give one of them")
    run = load_run(checkpoint, data)
    arguments = [os.fspath(data), "--task", "language_modeling", "--path", str(run.path)]
    arguments += ["--add-bos-token"] if run.cfg.task.get("add_bos_token", False) else []
    arguments += bpe_args(data) if (Path(data) / NOTE).is_file() else []
    arguments += [*search_flags(flags), *length_flags(run, prompts, length, shortest), *flags]
    parser = fairseq_options.get_interactive_generation_parser()
    cfg = convert_namespace_to_omegaconf(fairseq_options.parse_args_and_arch(parser, arguments))
    if go_on:
        _go_on(cfg, prompts, length)
    else:
        _interactive(cfg, prompts, raw)


def read_prompts(given: Sequence[str] | None) -> list[str]:
    """Return the prompts of the command line, or else the lines of standard input.

    Raises:
        ValueError: there is none.
    """
    if given is None and sys.stdin.isatty():
        print("Type one prompt a line; end with Ctrl-D.", file=sys.stderr)
    prompts = sys.stdin.read().splitlines() if given is None else [line for text in given for line in text.split("\n")]
    if not prompts:
        raise ValueError("no prompt: give --prompt TEXT, or one prompt a line on standard input")
    return prompts


def main(argv: Sequence[str] | None = None) -> None:
    """Sample and print; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint")
    parser.add_argument("data", help="data folder, with the dictionary and tokeniser of the training")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="beginning; else the lines of standard input")
    parser.add_argument("--length", type=int, default=200, metavar="N", help="most tokens to add, default %(default)s")
    parser.add_argument("--min-len", type=int, default=1, metavar="N", help="no end of the line before so many tokens")
    parser.add_argument("--raw", action="store_true", help="print all that fairseq-interactive prints")
    parser.add_argument("--go-on", action="store_true", help="also after the end of a line, until --length is reached")
    options, flags = parser.parse_known_args(argv)
    prompts = read_prompts(options.prompt)
    how = {"raw": options.raw, "go_on": options.go_on}
    sample(options.checkpoint, options.data, prompts, options.length, options.min_len, flags, **how)


if __name__ == "__main__":
    sys.exit(run_command(PROG, main))
