"""``python -m fairseq_transnorm [ARCH]``: what ``fairseq-train --help`` does not show of a plugin."""

import argparse
import difflib
import sys
import textwrap
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_NAME_REGISTRY,
    ARCH_MODEL_REGISTRY,
    MODEL_DATACLASS_REGISTRY,
)

from . import USER_DIR, __version__
from .models.options import flag

PACKAGE = __package__
WIDTH = 100  # columns of the text


def architectures() -> dict[str, str]:
    """Architecture -> registered model, for the models of this package, models and then architectures by name."""
    names = ARCH_MODEL_NAME_REGISTRY
    ours = [arch for arch, model in ARCH_MODEL_REGISTRY.items() if model.__module__.startswith(f"{PACKAGE}.")]
    return {arch: names[arch] for arch in sorted(ours, key=lambda arch: (names[arch], arch))}


def preset(arch: str) -> dict[str, Any]:
    """Values that the architecture gives to options which the user did not type."""
    args = Namespace()
    ARCH_CONFIG_REGISTRY[arch](args)
    return vars(args)


def first_line(text: str | None) -> str:
    """First paragraph of a docstring on one line."""
    return " ".join((text or "").strip().partition("\n\n")[0].split())


def show_architectures() -> str:
    """All architectures, model by model, each with the options that its preset sets."""
    lines = [f"Architectures of {PACKAGE} {__version__}, for --arch beside --user-dir {USER_DIR}"]
    shown = None
    for arch, model in architectures().items():
        if model != shown:
            lines += ["", textwrap.fill(f"model {model}: {first_line(ARCH_MODEL_REGISTRY[arch].__doc__)}", WIDTH)]
            shown = model
        values = " ".join(f"{flag(name)} {value}" for name, value in preset(arch).items())
        lines.append(wrapped(f"  {arch}", values or "the defaults"))
    return "\n".join([*lines, "", f"Every option of one: python -m {PACKAGE} ARCH"])


def show_options(arch: str) -> str:
    """Every option of an architecture: flag, values, default, where the default comes from, help."""
    model = architectures()[arch]
    parser = ArgumentParser(add_help=False)
    gen_parser_from_dataclass(parser, MODEL_DATACLASS_REGISTRY[model]())
    values = preset(arch)
    lines = [
        f"--arch {arch}: preset of model {model}",
        textwrap.fill(first_line(ARCH_MODEL_REGISTRY[arch].__doc__), WIDTH),
        "What you type wins over the preset.",
        "",
    ]
    for action in parser._actions:
        if isinstance(action.default, str) and action.default.startswith("${"):
            default = f"taken from {flag(action.default[2:-1].rpartition('.')[2])}"
        else:
            default = f"default {written(action.default)}"
            if action.dest in values and values[action.dest] != action.default:
                default = f"default {written(values[action.dest])} by this preset, else {written(action.default)}"
        told = action.default is None and "(default" in str(action.help)
        text = f"{action.help}" if told else f"{action.help} [{default}]"
        lines.append(wrapped(f"  {' '.join(action.option_strings)} {kind(action)}", text))
    return "\n".join(lines)


def written(value: object) -> str:
    """A default as it is printed: a switch is on or off."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def kind(action: argparse.Action) -> str:
    """What an option takes: its choices, the name of its type, or nothing for a switch."""
    if action.choices is not None:
        return "{" + ", ".join(map(str, action.choices)) + "}"
    if action.nargs == 0:
        return ""
    # fairseq reads lists with an anonymous function
    name = getattr(action.type, "__name__", "str")
    return "LIST" if name == "<lambda>" else name.upper()


def wrapped(head: str, text: str) -> str:
    """``head``, then ``text`` in a column of its own, below the head where that is long."""
    column = 36
    indent = " " * column
    head = textwrap.fill(head.rstrip(), WIDTH, subsequent_indent=" " * 6, break_on_hyphens=False)
    body = textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return f"{head}\n{body}" if len(head) > column - 2 else head + body[len(head) :]


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(prog=f"python -m {PACKAGE}", description="Show the architectures of this fairseq plugin.")
    parser.add_argument("arch", nargs="?", metavar="ARCH", help="show every option of this architecture")
    folders = parser.add_mutually_exclusive_group()
    folders.add_argument("--user-dir", action="store_true", help="print the folder that fairseq wants as --user-dir")
    folders.add_argument("--config-dir", action="store_true", help="print the folder of the YAML runs")
    parser.add_argument("--version", action="version", version=f"{PACKAGE} {__version__}")
    args = parser.parse_args(argv)

    if args.user_dir or args.config_dir:
        print(Path(USER_DIR) / "config" if args.config_dir else USER_DIR)
    elif args.arch is None:
        print(show_architectures())
    elif args.arch in architectures():
        print(show_options(args.arch))
    else:
        close = difflib.get_close_matches(args.arch, architectures(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "known are " + ", ".join(architectures())
        parser.error(f"unknown architecture {args.arch!r}; {hint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
