#!/usr/bin/env bash
# Perplexity of a language model by both conventions, each by its name.
#
#   scripts/eval_alm.sh CHECKPOINT DATA_BIN [fairseq-eval-lm flags]
#
# (a) blocks of --tokens-per-sample tokens that share no context, as in validation during training;
# (b) with a context window: each token sees at least that many tokens before it.
# The length of the blocks is that of the training; your flags come last and win.
#
#   CONTEXT_WINDOW=400     of (b), in tokens; by default 400 for blocks of 512, and the same share of other lengths
#   OUT=FILE.json          also write the numbers there
#   --gen-subset valid     the splits, with commas between; default valid,test
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

case ${1:---help} in
    -h | --help) usage && exit ;;
esac
(($# >= 2)) || die "give a checkpoint and a data folder: $0 CHECKPOINT DATA_BIN [fairseq-eval-lm flags]"
check_data "$2"
find_environment
exec python -m fairseq_transnorm.measure.perplexity "$1" "$2" \
    ${CONTEXT_WINDOW:+--context-window "$CONTEXT_WINDOW"} ${OUT:+--json "$OUT"} "${@:3}"
