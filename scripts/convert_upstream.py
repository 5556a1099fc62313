"""Turn a checkpoint of the original's language model or masked language model into one of ours, or back (--reverse)."""

import argparse
import sys

from fairseq_transnorm.models.transnormer.convert import GLU_ACTS, convert, revert
from fairseq_transnorm.models.transnormer.originals import ARCHITECTURES, DEFAULT_TOKENS


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, or 1 after an error, which is printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", metavar="IN", help="fairseq checkpoint, or bare state dict saved by torch.save")
    parser.add_argument("output", metavar="OUT", help="checkpoint to write")
    parser.add_argument("--reverse", action="store_true", help="from ours to the original's")
    parser.add_argument(
        "--arch", choices=list(ARCHITECTURES), help="needed when IN does not say it: t1 and t2 have the same tensors"
    )
    parser.add_argument(
        "--glu-act",
        choices=GLU_ACTS,
        default="identity",
        help="the gate that the original code computed, which no tensor shows: identity (the default) since "
        "2022-10-28, as in the released code, silu before",
    )
    parser.add_argument("--data", help="binarised data folder to store in OUT; its dictionary must fit")
    parser.add_argument(
        "--tokens-per-sample", type=int, help=f"length to store in OUT; default: as stored, else {DEFAULT_TOKENS}"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="load IN even when it holds Python objects other than tensors and plain configs. RISK: such a file can "
        "run any code with your rights; only for files whose author you trust",
    )
    args = parser.parse_args(argv)
    options = {x: getattr(args, x) for x in ("arch", "glu_act", "overwrite", "allow_pickle")}
    if not args.reverse:
        options |= {"data": args.data, "tokens_per_sample": args.tokens_per_sample}
    elif args.data or args.tokens_per_sample:
        parser.error("--data and --tokens-per-sample do not go with --reverse")
    try:
        lines = (revert if args.reverse else convert)(args.input, args.output, **options)
    except (ValueError, OSError) as error:
        print(f"convert_upstream: error: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
