"""How good a causal language model is on a split of its data folder, sentence by sentence, and how saturated.

Perplexity is exp(nats / targets) with a ``</s>`` to predict after each sentence, by fairseq-eval-lm's own code; beside
it that of the words alone, since a ``</s>`` is easy, and that of the words after the first, which no model without a
start symbol predicts. The experiments on norm growth first reported 2 to the loss in nats, averaged over sentences:
``pplx_base2_upstream``, for comparison with their figures only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .batches import BATCH_TOKENS, SentenceBatches, sentence_batches, without_ends
from .checkpoints import Run, load_run
from .evaluation import LOGITS, load_split, symbol_counts, unigram_perplexity
from .layer_saturation import FairseqStack, encodings_of, layer_rows, warn_of_collapse, warn_of_positions
from .parameters import SCOPES, model_vector, norm, select
from .perplexity import evaluate

WHOLE_SENTENCES = ["--sample-break-mode", "eos"]  # for fairseq-eval-lm


class TokenScores(NamedTuple):
    """What a model made of each target of some sentences, one entry a target.

    Attributes:
        symbols: the targets.
        nats: their losses, float64.
        correct: whether the target was the likeliest symbol.
        sentences: number of the sentence.
        places: 0 for the first word of a sentence, and so on; its ``</s>`` comes last.
    """

    symbols: Tensor
    nats: Tensor
    correct: Tensor
    sentences: Tensor
    places: Tensor

    def where(self, chosen: Tensor) -> TokenScores:
        """Return some of the entries."""
        return TokenScores(*(column[chosen] for column in self))

    def perplexity(self) -> float:
        """Return exp(mean nats)."""
        return math.exp(float(self.nats.mean()))

    def sentence_losses(self) -> Tensor:
        """Return the mean nats of each sentence."""
        sums = torch.zeros(int(self.sentences.max()) + 1, dtype=torch.float64).index_add(0, self.sentences, self.nats)
        return sums / torch.bincount(self.sentences)


@torch.no_grad()
def token_scores(run: Run, batches: SentenceBatches) -> TokenScores:
    """Return the scores of every word and of the ``</s>`` after each sentence.

    Args:
        run: a causal language model, in evaluation mode.
        batches: sentences as ``sentence_batches`` gives them to it, none of them cut.
    """
    dictionary = run.task.source_dictionary
    found: list[TokenScores] = []
    for numbers in tqdm(list(batches.numbers()), desc="scores", disable=None, leave=False):
        tokens, keep = batches.batch(numbers)
        ends = torch.full_like(tokens[:, :1], dictionary.eos())
        targets = torch.cat([tokens[:, 1:], ends], dim=1)
        targets = targets.where(targets != dictionary.pad(), dictionary.eos())
        if run.cfg.task.get("add_bos_token", False):
            keep = keep.clone()
            keep[:, 0] = False  # its target is the </s> before the sentence
        logs = run.model.get_normalized_probs(run.model(tokens), log_probs=True)
        nats = -logs.gather(-1, targets[..., None])[..., 0].double()
        places = keep.cumsum(1) - 1
        sentences = torch.tensor(numbers, device=tokens.device)[:, None].expand_as(tokens)
        columns = (targets, nats, logs.argmax(-1) == targets, sentences, places)
        found.append(TokenScores(*(column[keep].cpu() for column in columns)))
    return TokenScores(*map(torch.cat, zip(*found, strict=True)))


def measure(
    name: str, checkpoint: str | Path, split: str = "test", data: str | Path | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Return all scores of one checkpoint as a row.

    Losses are in nats, accuracies shares. ``targets`` are the words and the ``</s>`` of each line, ``words`` the words
    alone and ``later_words`` those after the first of a sentence; each with the perplexity of an add-one unigram model
    of the split ``train``, None where there is no such split. It counts there what it predicts: words and ``</s>``,
    the words alone, or the words after the first of a sentence. Empty lines count in ``perplexity`` only. Then
    saturation and the mean cosine of two tokens of the encodings, and the norm of the parameters by scope.

    Args:
        name: for the column ``model``.
        checkpoint: of a causal language model.
        split: to evaluate.
        data: data folder, when not the one of the training.
        device: where the model runs.

    Raises:
        FileNotFoundError: the checkpoint, the data folder or the split is missing.
        ValueError: a broken checkpoint, a masked language model, or sentences that are too long for the positions.
    """
    run = load_run(checkpoint, data, device)
    if getattr(run.model, "decoder", None) is None or getattr(run.model, "encoder", None) is not None:
        raise ValueError(
            f"{checkpoint} is no causal language model, but a {type(run.model).__name__}; masked language models are "
            "evaluated by scripts/eval_blm.sh"
        )
    if without_ends(run):
        raise ValueError(
            f"{checkpoint} was trained with --sentence-layout original, without the </s> that this perplexity begins "
            "and ends with; its own is in the train.log of its training"
        )
    batches = sentence_batches(run, split, None, min(BATCH_TOKENS, LOGITS // len(run.task.target_dictionary)))
    if batches.cut:
        raise ValueError(
            f"{batches.cut} of the {len(batches.rows)} sentences of split {split!r} are longer than the "
            f"{run.model.max_positions()} positions of {checkpoint}, so that no perplexity of all of it can be had; "
            "for text in blocks there is scripts/eval_alm.sh"
        )
    row: dict[str, Any] = {"model": name, "split": split, "updates": run.updates, "sentences": len(batches.rows)}
    row |= _likelihood(run, split, batches)
    row |= _saturation(name, run, batches)
    return row | {f"norm_{scope}": norm(select(model_vector(run.model), scope)) for scope in SCOPES}


def _likelihood(run: Run, split: str, batches: SentenceBatches) -> dict[str, Any]:
    eos, symbols = run.task.source_dictionary.eos(), len(run.task.source_dictionary)
    scores = token_scores(run, batches)
    words = scores.where(scores.symbols != eos)
    later = words.where(words.places > 0)
    alone = ["--batch-size", "1"] if batches.equal else []  # nothing is padded there either
    whole = evaluate(run, split, run.cfg.task.tokens_per_sample, 0, WHOLE_SENTENCES + alone)
    losses = scores.sentence_losses()
    counts, later_counts = _training_counts(run, 0), _training_counts(run, 1)

    def unigram(some: TokenScores, counts: np.ndarray | None) -> float | None:
        if counts is None or not len(some.symbols):
            return None
        counts = np.where(np.arange(symbols) == eos, 0, counts)
        return unigram_perplexity(np.bincount(some.symbols.numpy(), minlength=symbols), counts)

    return {
        "targets": whole["tokens"],
        "loss": whole["loss_nats"],
        "perplexity": whole["perplexity"],
        "unigram_perplexity": None if counts is None else unigram_perplexity(symbol_counts(run, split), counts),
        "accuracy": float(scores.correct.double().mean()),
        "words": len(words.symbols),
        "perplexity_words": words.perplexity(),
        "unigram_perplexity_words": unigram(words, counts),
        "accuracy_words": float(words.correct.double().mean()),
        "later_words": len(later.symbols),
        "perplexity_later_words": later.perplexity() if len(later.symbols) else None,
        "unigram_perplexity_later_words": unigram(later, later_counts),
        "sentence_loss": float(losses.mean()),
        "pplx_base2_upstream": float((2.0**losses).mean()),
    }


def _training_counts(run: Run, first: int) -> np.ndarray | None:
    try:
        load_split(run, "train")
    except FileNotFoundError:
        return None
    return symbol_counts(run, "train", first)


def _saturation(name: str, run: Run, batches: SentenceBatches) -> dict[str, Any]:
    network = FairseqStack(run.model)
    warn_of_positions(name, network, scale_positions=False)
    rows = layer_rows(network, batches)
    warn_of_collapse(name, rows)
    (last,) = encodings_of(rows)
    return {"saturation": last["similarity"], "collapse": last["collapse"]}
