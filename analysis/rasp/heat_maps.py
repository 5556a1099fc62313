"""Draw where models of formal languages look: attention weights and scores of a sequence, queries down, keys across.

Give checkpoints, save folders or folders of these, which are searched to any depth. For each sequence and model

  OUT/LANGUAGE/SEQUENCE/MODEL/distributions/layer N.png   the weights, one panel a head, on a scale from 0 to 1
  OUT/LANGUAGE/SEQUENCE/MODEL/scores/layer N.png          what the softmax is of, on one scale that is centred on 0
  OUT/LANGUAGE/SEQUENCE/MODEL/in_out.txt                  input, output, target, accuracy; all models: ../ins_outs.txt

with a .pdf and a .json beside each figure. The lower panels of a language that has a program show where its heads look;
the table tells how much of the weight lies there. In names of folders a capital is _ and its small letter, and what is
no letter or digit %, and its bytes. A model that cannot be read, or cannot take one of the sequences, is named and left
out; the exit status then is 3. MODEL is as much of the end of a path as tells the models of one call apart: give calls
for different models of one name an --out of their own, or the later maps replace the earlier ones.

  python analysis/rasp/heat_maps.py --path runs/reverse --sequence abcdefgh
  python analysis/rasp/heat_maps.py --path runs --language sort_26 --must-contain L2 --sequence dbbda --with-numbers
  python analysis/rasp/heat_maps.py --path runs/all --sequence 'a b\\tc' --escapes --kind scores --autoscale
  python analysis/rasp/heat_maps.py --table 'outputs/rasp_maps/.../layer 0.json' --with-numbers 3 --out outputs/again
"""

import argparse
import math
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from fairseq_transnorm.data import languages
from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.language_attention import BOS, LINEAR, load_language_run, look_at, map_rows, text_block
from fairseq_transnorm.measure.language_runs import CHECKPOINTS, find_checkpoints, language_of
from fairseq_transnorm.plotting import (
    analysis_parser,
    at_least,
    describe,
    file_names,
    mark_ticks,
    panel_title,
    panels,
    run_analysis,
    same_origin,
    save_text,
    show_symbol,
    text_name,
)

Rows = list[dict[str, Any]]
KINDS = {"distributions": "weight", "scores": "score"}  # folder and column
MEASURED = ("target_mass", "squared_difference")
COLUMNS: tuple[str, ...] = (
    "model",
    "language",
    "sequence",
    "attention",
    "layer",
    "head",
    "query",
    "query_symbol",
    "key",
    "key_symbol",
)
COLUMNS += ("weight", "score", "target", *MEASURED)
BEGINNINGS = (BOS, languages.BOS)
POINTS, FILLED = 72, 0.75  # of an inch; of the side of a panel by its cells
LEGIBLE = 3.0  # points of the smallest letters
PLAIN = (0.0, 1.0)
WHAT = {"distributions": "attention weights", "scores": "attention scores before the softmax"}
WHAT |= {LINEAR: "weights of linear attention, no distribution"}
ESCAPES = {"\\t": "\t", "\\n": "\n", "\\r": "\r", "\\x0b": "\x0b", "\\x0c": "\x0c", "\\\\": "\\"}


def measure(options: argparse.Namespace) -> Rows:
    quiet()
    texts = sequences(options)
    rows: Rows = []
    wanted = options.language and languages.get(options.language).name
    for name, path in find_checkpoints(options.path, options.select, options.must_contain):
        try:
            if wanted not in (None, language_of(path)):
                continue
            run = load_language_run(path, options.device)
            seen = {run.task.language.with_bos(text): text for text in texts}
            looks = [look_at(run, text) for text in seen.values()]
            if looks[0].scores is None and options.kind == "scores":
                raise ValueError(f"--kind scores: {path} has linear attention, which has no scores; draw distributions")
            found = [(map_rows(run, name, look), text_block(run, name, look)) for look in looks]
        except (OSError, ValueError) as error:
            options.skipped.append(str(error))
            continue
        for mine, block in found:
            rows += mine
            options.blocks[mine[0]["language"], mine[0]["sequence"], name] = block
    if not rows:
        raise ValueError("; ".join(options.skipped) or f"no model of the language {wanted} among those that were found")
    return rows


def sequences(options: argparse.Namespace) -> list[str]:
    """Return the sequences to draw; what a file holds is one, with every symbol in it."""
    texts = [unescaped(text) if options.escapes else text for text in options.sequence]
    return [*texts, *(path.read_bytes().decode() for path in options.sequence_file)]


def unescaped(text: str) -> str:
    """Read the escapes of ``ESCAPES``.

    Raises:
        ValueError: a backslash begins none of them.
    """

    def symbol(match: re.Match[str]) -> str:
        if match[0] not in ESCAPES:
            raise ValueError(f"--escapes: {match[0]!r} in {text!r} is none of {' '.join(ESCAPES)}")
        return ESCAPES[match[0]]

    return re.sub(r"\\(?:x..|.|$)", symbol, text)


def grouped(rows: Rows, *names: str) -> dict[tuple[Any, ...], Rows]:
    """Return the rows by their values of some columns, in the order in which these came."""
    found: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def draw(rows: Rows, stem: str, options: argparse.Namespace) -> list[str]:
    stems, blocks, fit = [], [], True
    wanted = list(KINDS) if options.kind == "both" else [options.kind]
    for (language, sequence), some in grouped(rows, "language", "sequence").items():
        home = Path(stem) / safe(language) / text_name(sequence)
        told = []
        for (model,), mine in grouped(some, "model").items():
            folder = home.joinpath(*map(safe, model.split("/")))
            if block := options.blocks.get((language, sequence, model)):
                save_text(folder / "in_out.txt", block)
                told.append(block)
            for kind in wanted:
                if kind == "scores" and mine[0]["score"] is None:
                    continue
                for (layer,), of_layer in grouped(mine, "layer").items():
                    stems.append(str(folder / kind / f"layer {layer}"))
                    fit &= draw_layer(same_origin(rows, of_layer), stems[-1], kind, options)
        if told:
            save_text(home / "ins_outs.txt", "\n".join(told))
        blocks += told
    if not stems:
        raise ValueError("--kind scores: linear attention has no scores; draw its weights with --kind distributions")
    print("\n".join(blocks))
    if not fit:
        print("--with-numbers: left out where cells are too small for them; give a larger --size", file=sys.stderr)
    return stems


def safe(name: str) -> str:
    return file_names([name])[name]


def draw_layer(rows: Rows, stem: str, kind: str, options: argparse.Namespace) -> bool:
    """Draw a panel a head, and below them one for each head of the program; False where numbers do not fit in."""
    heads = {head: mine for (head,), mine in grouped(rows, "head").items()}
    program = [head for head, mine in heads.items() if any(row["target"] is not None for row in mine)]
    above = math.isqrt(len(heads))
    columns = -(-len(heads) // above)
    below = -(-len(program) // columns)
    values = {head: matrix(mine, KINDS[kind]) for head, mine in heads.items()}
    size = (options.size, options.size)
    with panels(stem, rows, nrows=above + below, ncols=columns, size=size, seed=options.seed) as axes:
        panes = [(axes[n], head, True) for n, head in enumerate(heads)]
        panes += [(axes[above * columns + n], head, False) for n, head in enumerate(program)]
        for ax in set(axes) - {ax for ax, _, _ in panes}:
            ax.remove()
        drawn: list[Axes] = []
        images: list[AxesImage] = []
        fit = True
        for ax, head, own in panes:
            cells = values[head] if own else matrix(heads[head], "target")
            fitted = [values[head]] if options.autoscale else list(values.values())
            ends = limits(fitted, kind, rows[0]["attention"], options) if own else PLAIN
            image = draw_map(ax, heads[head], cells, ends, options.size)
            mass = heads[head][0]["target_mass"]
            panel_title(ax, f"head {head}" if own else f"target of head {head}\nweight on it {mass:.2f}")
            if own:
                drawn.append(ax)
                images.append(image)
                if options.with_numbers is not None:
                    fit &= write_numbers(ax, image, options.with_numbers, options.size)
        first, what = rows[0], WHAT[kind if rows[0]["attention"] != LINEAR else LINEAR]
        if not options.skip_colorbar:
            add_bars(drawn, images, what, options.autoscale)
        figure = drawn[0].figure
        assert isinstance(figure, Figure)
        of = f"{first['language']}, {first['model']}\nlayer {first['layer']}: {what}"
        add_title(figure, f"{of}\nrows: queries, columns: keys")
    return fit


def matrix(rows: Rows, column: str) -> np.ndarray:
    """Return a column of one head's rows by query (down) and key (across); nan where there is no value."""
    n = 1 + max(row["query"] for row in rows)
    values = np.full((n, n), np.nan)
    for row in rows:
        if row[column] is not None:
            values[row["query"], row["key"]] = row[column]
    return values


def limits(values: list[np.ndarray], kind: str, attention: str, options: argparse.Namespace) -> tuple[float, float]:
    """Return the ends of the scale of some panels."""
    low, high = min(float(np.nanmin(each)) for each in values), max(float(np.nanmax(each)) for each in values)
    if not options.autoscale:
        if kind == "scores" or low < 0:
            low, high = -max(-low, high), max(-low, high)
        else:
            low, high = 0.0, high if attention == LINEAR else 1.0
    low, high = (given if given is not None else own for given, own in ((options.vmin, low), (options.vmax, high)))
    if low < high:
        return low, high
    return (low, low + 1) if options.vmax is None else (high - 1, high)


def draw_map(ax: Axes, rows: Rows, values: np.ndarray, ends: tuple[float, float], inches: float) -> AxesImage:
    """Draw the values of one head on a panel of so many inches; of many symbols only every few are named."""
    colours = "RdBu_r" if ends[0] == -ends[1] else "cividis"
    image = ax.imshow(values, vmin=ends[0], vmax=ends[1], cmap=colours, interpolation="nearest")
    symbols = list({row["query"]: row["query_symbol"] for row in rows}.values())
    cell = FILLED * POINTS * inches / len(symbols)
    step = 1 if cell >= LEGIBLE else math.ceil(2 * LEGIBLE / cell)
    named, size = symbols[::step], min(9.0, cell if step == 1 else 0.75 * step * cell)
    names = [show_symbol(symbol) for symbol in named]
    mark_ticks(ax, range(0, len(symbols), step), names, [symbol in BEGINNINGS for symbol in named], size)
    if 0.7 * size * max(map(len, names)) < step * cell:
        ax.xaxis.set_tick_params(labelrotation=0)
    ax.grid(False)
    ax.set_facecolor("0.94")
    describe(ax, x="key", y="query")
    return image


def write_numbers(ax: Axes, image: AxesImage, decimals: int, inches: float) -> bool:
    """Write the values into the cells, dark on light and light on dark; False where cells are too small for them."""
    values = np.asarray(image.get_array())
    texts = {place: f"{value:.{decimals}f}" for place, value in np.ndenumerate(values) if np.isfinite(value)}
    size = FILLED * POINTS * inches / len(values) / max(2.0, 0.7 * max(map(len, texts.values())))
    if size < LEGIBLE:
        return False
    for (query, key), text in texts.items():
        red, green, blue, _ = image.cmap(image.norm(values[query, key]))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        ax.text(key, query, text, ha="center", va="center", fontsize=min(8.0, size), color="white" if dark else "black")
    return True


def add_bars(axes: list[Axes], images: list[AxesImage], name: str, own: bool) -> None:
    """Add a colour bar for all panels, or where they have scales of their own, to each."""
    of = [([ax], image) for ax, image in zip(axes, images, strict=True)] if own else [(axes, images[0])]
    for some, image in of:
        image.figure.colorbar(image, ax=some, shrink=0.6, label=name, panchor=False)  # in line with the targets


def add_title(figure: Figure, text: str) -> None:
    """Head a figure with lines that are as long as it is wide at most."""
    title = figure.suptitle(text, fontsize=10, parse_math=False)
    for letters in range(max(map(len, text.splitlines())), 0, -1):
        title.set_text("\n".join(textwrap.fill(line, letters) for line in text.splitlines()))
        if title.get_window_extent().width <= 0.96 * figure.bbox.width:
            break


def summary(rows: Rows, options: argparse.Namespace) -> Rows:
    """One line a model, sequence, layer and head."""
    names = ("model", "language", "sequence", "layer", "head")
    lines = []
    for key, mine in grouped(rows, *names).items():
        line = dict(zip(names, key, strict=True)) | {"attention": mine[0]["attention"]}
        line["sequence"] = "".join(map(show_symbol, line["sequence"]))
        most = [max(row["weight"] for row in of) for of in grouped(mine, "query").values()]
        lines.append(line | {"mean largest weight": sum(most) / len(most)} | {n: mine[0][n] for n in MEASURED})
    return lines


def verdict(rows: Rows, options: argparse.Namespace) -> str | None:
    if not options.skipped:
        return None
    count = len(options.skipped)
    return f"left out {count} model{'s' * (count > 1)}:\n" + "\n".join(options.skipped)


def panel_size(text: str) -> float:
    if not 2 <= float(text) <= 50:
        raise argparse.ArgumentTypeError(f"{text} is not from 2 to 50: less has no room for the names of the symbols")
    return float(text)


def finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return float(text)


def make_parser() -> argparse.ArgumentParser:
    parser = analysis_parser(str(__doc__), "outputs/rasp_maps", device=True)
    add = parser.add_argument
    add("--path", nargs="+", type=Path, default=[], metavar="CKPT_OR_DIR", help="checkpoints, folders of runs")
    add("--select", choices=CHECKPOINTS, default="best", help="checkpoint of a save folder (default: %(default)s)")
    add("--must-contain", default="", metavar="TEXT", help="only save folders whose path contains TEXT")
    add("--language", metavar="NAME", help="only models of this language")
    add("--sequence", action="append", default=[], metavar="TEXT", help="input; may be given several times")
    add("--escapes", action="store_true", help=f"read {' '.join(ESCAPES)} in --sequence")
    add(
        "--sequence-file",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="one input, all that FILE holds, with every white space",
    )
    add("--kind", choices=[*KINDS, "both"], default="both", help="what to draw (default: %(default)s)")
    add(
        "--with-numbers",
        type=at_least(0),
        nargs="?",
        const=2,
        metavar="DECIMALS",
        help="write the values into the cells (with 2 decimals) where they can be read",
    )
    add("--size", type=panel_size, default=5.0, help="of a panel, in inches (default: %(default)g)")
    add("--vmin", type=finite, help="lower end of the scale")
    add("--vmax", type=finite, help="upper end of the scale")
    add("--autoscale", action="store_true", help="fit the scale to each panel separately, as the original code does")
    add("--skip-colorbar", action="store_true", help="draw no colour bar")
    parser.set_defaults(skipped=[], blocks={})
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(argv)
    given = options.sequence + options.sequence_file
    if options.table and (options.path or given):
        parser.error("give --path and a sequence, or --table, not both")
    if not options.table and not (options.path and given):
        parser.error(
            "nothing to draw: give --path, and --sequence or --sequence-file; or --table with an earlier table"
        )
    if None not in (options.vmin, options.vmax) and options.vmin >= options.vmax:
        parser.error(f"--vmin {options.vmin:g} is not below --vmax {options.vmax:g}")
    return run_analysis(
        parser, argv, measure, draw, columns=COLUMNS, summary=summary, need_inputs=False, verdict=verdict
    )


if __name__ == "__main__":
    sys.exit(main())
