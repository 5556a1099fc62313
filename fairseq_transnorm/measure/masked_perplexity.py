"""Perplexity of a masked language model on fixed masks, so that two models are compared on the same ones.

``python -m fairseq_transnorm.measure.masked_perplexity CHECKPOINT DATA [--json FILE] [options]``

fairseq's own task masks the text and fairseq's own criterion measures the loss of the masked tokens, with a seed that
does not depend on that of the training. Everything else is as in training unless an option says otherwise. Rows with
the same ``fingerprint`` were measured on the same text with the same masks. ``unigram_perplexity`` is what a model
without any context reaches on these tokens: their frequencies in the split ``train``, one added to each count.
"""

from __future__ import annotations

import copy
import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import tasks, utils
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.masked_lm import MaskedLMTask
from omegaconf import open_dict

from .checkpoints import Run, load_run, read_state
from .commands import run_command
from .evaluation import LOGITS, evaluation_parser, load_split, symbol_counts, unigram_perplexity, write_rows

PROG = "masked_perplexity"
CONVENTION = "masked"


@dataclass(frozen=True)
class Settings:
    """How text is cut, masked and put into batches.

    Attributes:
        seeds: masks to average over.
        tokens_per_sample: most tokens of a sequence, with ``<s>``; None: that of the training.
        sample_break_mode: fairseq's word for where sequences end; None: that of the training.
        max_tokens: tokens of a batch; None: what fits into some GB.
        skip_long: leave out sequences of a line longer than ``tokens_per_sample`` instead of failing.
    """

    seeds: Sequence[int] = (1,)
    tokens_per_sample: int | None = None
    sample_break_mode: str | None = None
    max_tokens: int | None = None
    skip_long: bool = False


@dataclass
class _Sums:
    """What one pass over a split adds up, in nats and tokens."""

    loss: float = 0.0
    targets: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # masked tokens, by symbol
    tokens: int = 0
    digests: dict[int, bytes] = field(default_factory=dict)  # of each sequence and its masks


def measure(
    checkpoint: str | Path,
    data: str | Path,
    subsets: Sequence[str] = ("valid", "test"),
    settings: Settings | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Return one row a split.

    Args:
        checkpoint: ``.pt`` file of a model that was trained with fairseq's task ``masked_lm``.
        data: data folder; its dictionary must be that of the training.
        subsets: splits to evaluate.
        settings: what is not as in training.
        device: where the model runs.

    Raises:
        FileNotFoundError: the checkpoint, the data folder or a split is missing.
        ValueError: a broken checkpoint, another task or dictionary, lengths that do not fit, or text that would not
            count.
    """
    settings = settings or Settings()
    name = read_state(Path(checkpoint))["cfg"].task._name
    if not issubclass(TASK_REGISTRY[name], MaskedLMTask):
        raise ValueError(
            f"{checkpoint} was trained with the task {name!r}, masked perplexity is of masked_lm; "
            "for language_modeling there is scripts/eval_alm.sh"
        )
    run = load_run(checkpoint, data, device)
    length = settings.tokens_per_sample
    if length is not None and not 1 < length <= run.model.max_positions():
        raise ValueError(
            f"--tokens-per-sample {length} must be from 2 to the {run.model.max_positions()} positions of {run.path}"
        )
    if settings.max_tokens is not None and settings.max_tokens < (length or run.cfg.task.tokens_per_sample):
        raise ValueError(f"--max-tokens {settings.max_tokens} has no room for a sequence; leave it out")
    for subset in subsets:
        load_split(run, subset)
    counts = unigram_counts(run, masking_task(run, settings, settings.seeds[0]))
    return [evaluate(run, subset, settings, counts) for subset in subsets]


def masking_task(run: Run, settings: Settings, seed: int) -> MaskedLMTask:
    """Return the task of the training with another seed of its masks, and no line cut short."""
    cfg = copy.deepcopy(run.cfg.task)
    with open_dict(cfg):
        cfg.seed = seed
        cfg.shorten_method = "none"
        cfg.tokens_per_sample = settings.tokens_per_sample or cfg.tokens_per_sample
        cfg.sample_break_mode = settings.sample_break_mode or cfg.sample_break_mode
    return tasks.setup_task(cfg, from_checkpoint=True)


def unigram_counts(run: Run, task: MaskedLMTask) -> np.ndarray | None:
    """Return how often each symbol occurs in the split ``train`` as the model reads it, a ``<s>`` before each sequence.

    None where the data folder has no such split.
    """
    try:
        counts = symbol_counts(run, "train")
    except FileNotFoundError:
        return None
    task.load_dataset("train")
    counts[task.source_dictionary.bos()] += len(task.dataset("train"))
    return counts


def evaluate(run: Run, subset: str, settings: Settings, counts: np.ndarray | None) -> dict[str, Any]:
    """Return the row of one split: loss over all masks of all seeds, each masked token counting the same."""
    passes = []
    for seed in settings.seeds:
        task = masking_task(run, settings, seed)
        task.load_dataset(subset)
        kept = _indices(run, task, subset, settings)
        passes.append(_read(run, task, subset, settings, kept))
    targets = np.sum([p.targets for p in passes], axis=0)
    masked = int(targets.sum())
    if not masked:
        raise ValueError(f"no token of split {subset!r} was masked ({passes[0].tokens:,} tokens); take more text")
    bits = sum(p.loss for p in passes) / masked / math.log(2)
    digest = hashlib.sha256(b"".join(p.digests[i] for p in passes for i in sorted(p.digests)))
    return {
        "subset": subset,
        "convention": CONVENTION,
        "tokens_per_sample": task.cfg.tokens_per_sample,
        "sample_break_mode": str(task.cfg.sample_break_mode),
        "mask_prob": task.cfg.mask_prob,
        "mask_seeds": ",".join(map(str, settings.seeds)),
        "sequences": len(kept),
        "sequences_left_out": len(task.dataset(subset)) - len(kept),
        "tokens": passes[0].tokens,
        "masked_tokens": masked,
        "loss_nats": bits * math.log(2),
        "loss_bits": bits,
        "perplexity": 2.0**bits,
        "unigram_perplexity": None if counts is None else unigram_perplexity(targets, counts),
        "fingerprint": digest.hexdigest()[:16],
    }


def _indices(run: Run, task: MaskedLMTask, subset: str, settings: Settings) -> list[int]:
    """Return the sequences to evaluate: all, unless some are too long for the model and may be left out."""
    limit = min(task.max_positions(), run.model.max_positions())
    dataset = task.dataset(subset)
    sizes = np.array([dataset.num_tokens(i) for i in range(len(dataset))])
    if (long := int((sizes > limit).sum())) and not settings.skip_long:
        raise ValueError(
            f"{long} of the {len(sizes)} sequences of split {subset!r} are single lines of up to {sizes.max()} tokens, "
            f"the model takes {limit}; --sample-break-mode none cuts them anywhere and evaluates everything, "
            "--skip-long leaves them out, as the training did"
        )
    return np.flatnonzero(sizes <= limit).tolist()


def _read(run: Run, task: MaskedLMTask, subset: str, settings: Settings, kept: Sequence[int]) -> _Sums:
    """Run the model over a split once.

    Raises:
        ValueError: a sequence was left out or came twice.
    """
    length, symbols = task.cfg.tokens_per_sample, len(task.source_dictionary)
    batches = task.get_batch_iterator(
        task.dataset(subset),
        max_tokens=settings.max_tokens or max(length, min(36000, LOGITS // symbols)),
        max_positions=min(task.max_positions(), run.model.max_positions()),
        ignore_invalid_inputs=settings.skip_long,
        required_batch_size_multiple=1,
    ).next_epoch_itr(shuffle=False)
    criterion = MaskedLmLoss(MaskedLmConfig(tpu=False), task)
    device = next(run.model.parameters()).device
    sums = _Sums(targets=np.zeros(symbols, dtype=np.int64))
    for sample in batches:
        pad, source, target = task.source_dictionary.pad(), sample["net_input"]["src_tokens"], sample["target"]
        for index, inputs, outputs in zip(sample["id"].tolist(), source.numpy(), target.numpy(), strict=True):
            if index in sums.digests:
                raise ValueError(f"sequence {index} of split {subset!r} came twice")
            end = int((inputs != pad).sum())
            sums.digests[index] = hashlib.sha256(inputs[:end].tobytes() + outputs[:end].tobytes()).digest()
        sums.targets += np.bincount(target[target != pad].numpy(), minlength=symbols)
        sums.tokens += int(sample["ntokens"]) - len(source)  # without <s>
        if device.type == "cuda":
            sample = utils.move_to_cuda(sample, device)
        with torch.no_grad():
            loss, _, _ = criterion(run.model, sample)
        sums.loss += float(loss)
    if sorted(sums.digests) != list(kept):
        raise ValueError(f"{len(sums.digests)} of {len(kept)} sequences of split {subset!r} were evaluated")
    return sums


def sentence(row: dict[str, Any]) -> str:
    """Say one row in words."""
    unigram = "" if row["unigram_perplexity"] is None else f" (unigram {row['unigram_perplexity']:.3f})"
    left_out = f", {row['sequences_left_out']} longer ones left out" if row["sequences_left_out"] else ""
    return (
        f"{row['subset']:6} {row['perplexity']:10.3f} masked perplexity{unigram}   {row['loss_nats']:.4f} nats, "
        f"{row['loss_bits']:.4f} bits per masked token   {row['masked_tokens']:,} masked of {row['tokens']:,} tokens   "
        f"{row['sequences']} sequences of up to {row['tokens_per_sample']} tokens{left_out}   "
        f"mask seed {row['mask_seeds']}, fingerprint {row['fingerprint']}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate and print; see ``--help``."""
    parser = evaluation_parser(PROG, __doc__)
    parser.add_argument(
        "--sample-break-mode", choices=("none", "complete", "complete_doc", "eos"), help="default: that of the training"
    )
    parser.add_argument("--mask-seeds", default="1", metavar="SEEDS", help="with commas between (default: %(default)s)")
    parser.add_argument("--skip-long", action="store_true", help="leave out lines longer than --tokens-per-sample")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="tokens of a batch (default: by the vocabulary)")
    parser.add_argument("--cpu", action="store_true", help="do not use the GPU")
    options = parser.parse_args(argv)
    seeds = [int(seed) if seed.strip().isdecimal() else -1 for seed in options.mask_seeds.split(",")]
    if not all(0 <= seed < 2**32 for seed in seeds):  # what numpy takes
        parser.error(f"--mask-seeds {options.mask_seeds!r}: whole numbers from 0 to 2^32 - 1, with commas between")
    settings = Settings(
        seeds, options.tokens_per_sample, options.sample_break_mode, options.max_tokens, options.skip_long
    )
    device = "cpu" if options.cpu or not torch.cuda.is_available() else "cuda"
    rows = measure(options.checkpoint, options.data, options.gen_subset.split(","), settings, device)
    print("\n".join(map(sentence, rows)))
    if options.json:
        write_rows(options.json, rows)


if __name__ == "__main__":
    sys.exit(run_command(PROG, main))
