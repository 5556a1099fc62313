"""Where models of formal languages look: weights and scores of a sequence, and how they compare with a program's.

A program's target is the matrix of the keys (across) that each query (down) attends to. Source: Weiss, Goldberg and
Yahav 2021, arXiv:2106.06981.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..modules.attention_targets import head_weights, squared_differences
from ..modules.attention_targets import target_masses as masses_of
from ..modules.softmax_attention import SoftmaxAttention
from .checkpoints import Run, load_run
from .language_runs import TASK, accuracy_text, evaluated, read_results
from .own_attention import own_attention_modules, own_weights

Row = dict[str, Any]
LINEAR = "linear"  # weights of linear attention without a denominator are no distribution
BOS = "BOS"  # what a model adds itself
LONGEST = 256  # symbols of a map
_BATCH = 50  # sequences


class HeadFit(NamedTuple):
    """How a head compares with the program's.

    Attributes:
        target: the program's matrix M, of the n inputs.
        target_mass: weight where M is 1, mean over queries.
        squared_difference: mean over the n^2 cells of the squared difference from M with rows divided by their sums.
    """

    target: list[list[bool]]
    target_mass: float
    squared_difference: float


class Look(NamedTuple):
    """What a model does with one sequence.

    Attributes:
        sequence: without a begin-of-sequence symbol.
        inputs: the symbols that the model got, n of them.
        outputs: its answers, as many.
        targets: the right answers.
        axis: names of the positions of the attention: the inputs, after the ``BOS`` of a model that adds one itself.
        attention: ``softmax``, ``linear`` or ``linear_denominator``.
        weights: of each layer, ``H n n``, or with such a ``BOS`` ``H n+1 n+1``.
        scores: what the softmax is of, likewise; None for linear attention.
        fits: layer and head -> comparison, for the heads of the language's program that the model has.
    """

    sequence: str
    inputs: list[str]
    outputs: list[str]
    targets: list[str]
    axis: list[str]
    attention: str
    weights: list[Float[Tensor, "H T T"]]
    scores: list[Float[Tensor, "H T T"]] | None
    fits: dict[tuple[int, int], HeadFit]


def load_language_run(path: str | Path, device: str | torch.device = "cpu") -> Run:
    """Load a checkpoint of a model of a formal language.

    Raises:
        FileNotFoundError: as of :func:`load_run`.
        ValueError: as of :func:`load_run`, or the model is of another task.
    """
    run = load_run(path, device=device)
    if run.cfg.task._name != TASK:
        raise ValueError(f"checkpoint {path} is of the task {run.cfg.task._name!r}; only {TASK} has formal languages")
    return run


def attention_of(run: Run) -> str:
    """Return the kind of a model's attention: ``softmax``, ``linear`` or ``linear_denominator``."""
    attn = run.model.layers[0].attn
    if isinstance(attn, SoftmaxAttention):
        return "softmax"
    return "linear_denominator" if attn.denominator else LINEAR


@torch.no_grad()
def attention_maps(
    run: Run, tokens: Int[Tensor, "B n"]
) -> tuple[Float[Tensor, "B n C"], list[Float[Tensor, "B H T T"]], list[Float[Tensor, "B H T T"]] | None]:
    """Return logits, the weights of each layer and its scores; linear attention has none of these."""
    if attention_of(run) == "softmax":
        logits, extra = run.model(tokens, return_attention=True)
        return logits, list(extra["attn"]), list(extra["scores"])
    weights: list[Tensor] = []
    with ExitStack() as stack:
        for _, module in own_attention_modules(run.model).values():

            def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                weights.append(own_weights(module, *args, **kwargs))

            stack.callback(module.register_forward_pre_hook(look, with_kwargs=True).remove)
        logits, _ = run.model(tokens)
    return logits, weights, None


def look_at(run: Run, text: str) -> Look:
    """Run a model on a sequence.

    Args:
        run: of :func:`load_language_run`.
        text: the sequence; a language with a begin-of-sequence symbol gets it added where it is missing.

    Raises:
        ValueError: the sequence is empty, too long for the model, or has a symbol that is not in the alphabet.
    """
    language = run.task.language
    try:
        numbers = torch.tensor([language.encode(text)], device=_device(run))
        if numbers.shape[1] > LONGEST:
            raise ValueError(
                f"a map of {numbers.shape[1]} symbols has no cells that can be seen; give at most {LONGEST}"
            )
        logits, weights, scores = attention_maps(run, numbers)
    except ValueError as error:
        raise ValueError(f"{run.path}: {error}") from error
    inputs = list(language.with_bos(text))
    own = weights[0].shape[-1] - len(inputs)
    return Look(
        sequence=language.without_bos(text),
        inputs=inputs,
        outputs=[language.classes[number] for number in logits[0].argmax(-1).tolist()],
        targets=language.outputs(text),
        axis=[BOS] * own + inputs,
        attention=attention_of(run),
        weights=[layer[0] for layer in weights],
        scores=None if scores is None else [layer[0] for layer in scores],
        fits=_fits(run, numbers, weights),
    )


def outputs_for(run: Run, text: str) -> str | None:
    """Return what a model makes of a sequence as one text; None where it is no sequence for the model."""
    try:
        outputs = look_at(run, text).outputs
    except ValueError:
        return None
    return joined(outputs, between(run))


def _fits(run: Run, tokens: Int[Tensor, "1 n"], weights: list[Tensor]) -> dict[tuple[int, int], HeadFit]:
    language, heads = run.task.language, weights[0].shape[1]
    kept = {n: place for n, place in enumerate(language.program_heads) if place[0] < len(weights) and place[1] < heads}
    if not kept or attention_of(run) == LINEAR:
        return {}
    lengths = torch.tensor([tokens.shape[1]], device=tokens.device)
    targets = language.attention_targets(tokens, lengths)[:, list(kept)]
    there = head_weights(weights, list(kept.values()), tokens.shape[1])
    masses, squares = (f(there, targets, lengths)[0].tolist() for f in (masses_of, squared_differences))
    fits = map(HeadFit, targets[0].tolist(), masses, squares)
    return dict(zip(kept.values(), fits, strict=True))


def map_rows(run: Run, name: str, look: Look) -> list[Row]:
    """Return a row for each layer, head, query and key.

    Args:
        run: of :func:`load_language_run`.
        name: of the model.
        look: of :func:`look_at`.

    Returns:
        Rows with ``model``, ``language``, ``sequence``, ``attention``, ``layer``, ``head``, ``query`` and ``key`` (all
        from 0), ``query_symbol``, ``key_symbol``, ``weight``, ``score`` (None for linear attention), and for heads of a
        program ``target`` (0 or 1; None at the model's own BOS), ``target_mass`` and ``squared_difference``, else None.
    """
    start = {"model": name, "language": run.task.language.name, "sequence": look.sequence, "attention": look.attention}
    own = len(look.axis) - len(look.inputs)
    rows = []
    for layer, weights in enumerate(look.weights):
        cells = weights.tolist()
        scores = None if look.scores is None else look.scores[layer].tolist()
        for head, matrix in enumerate(cells):
            fit = look.fits.get((layer, head))
            of_head: Row = start | {"layer": layer, "head": head}
            of_head |= {"target_mass": fit and fit.target_mass, "squared_difference": fit and fit.squared_difference}
            for query, line in enumerate(matrix):
                for key, weight in enumerate(line):
                    inside = fit is not None and min(query, key) >= own
                    cell = {"query": query, "query_symbol": look.axis[query], "key": key, "key_symbol": look.axis[key]}
                    cell |= {"weight": weight, "score": scores and scores[head][query][key]}
                    cell |= {"target": int(fit.target[query - own][key - own]) if fit and inside else None}
                    rows.append(of_head | cell)
    return rows


def text_block(run: Run, name: str, look: Look) -> str:
    """Return what a model made of a sequence as lines of text, with its test accuracy if its run was evaluated."""
    results = read_results(run.path.parent)
    accuracy = evaluated(results, "test", "accuracy")
    told = accuracy_text(accuracy)
    of = Path(str(results["evaluated"]["checkpoint"])).name if results and accuracy is not None else run.path.name
    if of != run.path.name:
        told += f" (of {of}, not of this checkpoint)"
    lines = {
        "model": name,
        "checkpoint": f"{run.path}, after {_count(run.epochs, 'epoch')} and {_count(run.updates, 'update')}",
        "epochs": str(results["epochs"] if results else run.epochs),
        "test accuracy": told,
        "input length": str(len(look.inputs)),
        "input": joined(look.inputs),
        "output": joined(look.outputs, between(run)),
        "target": joined(look.targets, between(run)),
    }
    for (layer, head), fit in look.fits.items():
        told = f"target mass {fit.target_mass:.4f}, mean squared difference {fit.squared_difference:.3g}"
        lines[f"layer {layer} head {head}"] = told
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def between(run: Run) -> str:
    """Return what stands between output symbols in a text: a space where one has several letters."""
    return " " * any(len(name) > 1 for name in run.task.language.classes)


def joined(symbols: list[str], separator: str = "") -> str:
    """Return symbols as a text on one line, a backslash and those that cannot be printed as their escapes."""
    escaped = (repr(symbol)[1:-1] if symbol == "\\" or not symbol.isprintable() else symbol for symbol in symbols)
    return separator.join(escaped)


def target_masses(run: Run, count: int = 60, min_length: int = 6) -> list[float]:
    """Return for each head of the language's program the weight on the keys that the program attends to.

    That is the mean over the queries of a sequence, then over sequences, from 0 to 1.

    Args:
        run: of :func:`load_language_run`, of a language with a program, also one without supervision.
        count: sequences, the first ones of the test set; all, where there are fewer.
        min_length: the least length of these, in symbols without BOS.

    Raises:
        ValueError: the language has no program, the model lacks a head of it, its weights are no distribution, or no
            sequence is long enough.
    """
    return [fit["target_mass"] for fit in head_fits(run, count, min_length)]


def head_fits(run: Run, count: int = 60, min_length: int = 6) -> list[Row]:
    """Return a row for each head of the language's program.

    Arguments and errors are those of :func:`target_masses`.

    Returns:
        Rows with ``layer``, ``head``, ``target_mass``, ``squared_difference`` and ``sequences``.
    """
    language, name = run.task.language, run.path
    if not language.program_heads:
        raise ValueError(f"{name}: {language.name} has no program of attention heads to compare with")
    if attention_of(run) == LINEAR:
        raise ValueError(f"{name}: linear attention has no distribution that could be compared with the targets")
    layers, heads = len(run.model.layers), run.model.layers[0].attn.num_heads
    if layers < language.needs[0] or heads < language.needs[1]:
        raise ValueError(
            f"{name}: the program of {language.name} has {_count(language.needs[0], 'layer')} and "
            f"{_count(language.needs[1], 'head')}, the model {layers} and {heads}"
        )
    texts = [text for text in run.task.samples.draw(language.sampler, "test") if len(text) >= min_length][:count]
    if not texts:
        raise ValueError(f"{name}: no test sequence of {language.name} has {min_length} symbols or more")
    found = []
    for first in range(0, len(texts), _BATCH):
        tokens, lengths = _padded(run, texts[first : first + _BATCH])
        _, weights, _ = attention_maps(run, tokens)
        there = head_weights(weights, language.program_heads, tokens.shape[1])
        targets = language.attention_targets(tokens, lengths)
        found.append(torch.stack([f(there, targets, lengths) for f in (masses_of, squared_differences)]))
    masses, squares = torch.cat(found, 1).double().mean(1).tolist()
    return [
        {"layer": layer, "head": head, "target_mass": mass, "squared_difference": square, "sequences": len(texts)}
        for (layer, head), mass, square in zip(language.program_heads, masses, squares, strict=True)
    ]


def heat_map_diagonal(run: Run, sequence: str = "abcdefgh", layer: int = 1, head: int = 0) -> int:
    """Return for how many queries the key with the largest weight is the one that mirrors the query's place.

    Args:
        run: of :func:`load_language_run`, of a language without BOS.
        sequence: of symbols of its alphabet.
        layer: from 0.
        head: from 0.
    """
    weights = look_at(run, sequence).weights[layer][head][-len(sequence) :, -len(sequence) :]
    return int((weights.argmax(-1) == torch.arange(len(sequence), device=weights.device).flip(0)).sum())


def _padded(run: Run, texts: list[str]) -> tuple[Int[Tensor, "B n"], Int[Tensor, " B"]]:
    rows = [torch.tensor(run.task.language.encode(text)) for text in texts]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=run.task.source_dictionary.pad())
    return tokens.to(_device(run)), torch.tensor([len(row) for row in rows], device=_device(run))


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def _device(run: Run) -> torch.device:
    return next(run.model.parameters()).device
