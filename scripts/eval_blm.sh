#!/usr/bin/env bash
# Perplexity of a masked language model on masks that do not depend on the seed of its training.
#
#   scripts/eval_blm.sh CHECKPOINT DATA_BIN [options]
#
# Prints, for each split, the perplexity of the masked tokens, that of a model without context (their frequencies in the
# training text), and a fingerprint of text and masks: numbers of two models can be compared where it is the same. How
# the text is cut into sequences is as in training.
#
#   MASK_SEED=1                 or several with commas between: the mean over these masks
#   OUT=FILE.json               also write the numbers there
#   --gen-subset valid          the splits, with commas between; default valid,test
#   --tokens-per-sample N, --sample-break-mode none|complete|complete_doc|eos
#         other sequences than those of the training
#   --skip-long                 leave out lines that are longer than a sequence, which is an error otherwise
#   --max-tokens N, --cpu       tokens of a batch; no GPU
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

case ${1:---help} in
    -h | --help) usage && exit ;;
esac
(($# >= 2)) || die "give a checkpoint and a data folder: $0 CHECKPOINT DATA_BIN [options]"
check_data "$2"
find_environment
exec python -m fairseq_transnorm.measure.masked_perplexity "$1" "$2" \
    ${MASK_SEED:+--mask-seeds "$MASK_SEED"} ${OUT:+--json "$OUT"} "${@:3}"
