#!/usr/bin/env bash
# Train a norm-growth language model on sentences with the paper's recipe, following its parameter norm.
#
#   scripts/train_normgrowth.sh VARIANT DATA_BIN [fairseq-train flags]
#
# VARIANT is one of control (post-norm), pre_norm, true_pre_norm, vaswani, no_scale, bias, bias_scaled, post_ln,
# si_softmax, si_softmax_scaled, si_norm, control_rel, bias_scaled_rel, control_drop, si_drop, bias_scaled_drop,
# bias_scaled_drop3; docs/normgrowth.md says what they are. DATA_BIN is a folder made by a script in preprocessing/, one
# sentence a line. Your flags come last and win. Called again, it goes on from SAVE_DIR/checkpoint_last.pt.
#
# Beside the checkpoints of each epoch it leaves checkpoint_init.pt, the model before the first update, and norms.jsonl,
# the norm and the step every 25 updates (--norm-log-interval 25; 0 for none).
#
#   SAVE_DIR=checkpoints/normgrowth_VARIANT  where all of it goes, with train.log (JSON) and command.log
#   SEQUENCES=16       sentences per update, whatever the number of processes
#   BATCH_SIZE=N       sentences a process holds at once (default: its share); less needs less memory
#   NPROC=1            processes on a machine without GPU
#   DRY_RUN=1          only print the command
#
# Sentences have at most 700 tokens, as in WikiText-2; --tokens-per-sample 83 does for the Penn Treebank.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

variants=(control pre_norm true_pre_norm vaswani no_scale bias bias_scaled post_ln si_softmax si_softmax_scaled si_norm
    control_rel bias_scaled_rel control_drop si_drop bias_scaled_drop bias_scaled_drop3)
case ${1:---help} in
    -h | --help) usage && exit ;;
esac
variant=${1#normgrowth_}
[[ " ${variants[*]} " == *" $variant "* ]] || die "no variant '$1'; there are: ${variants[*]}" \
    "usage: $0 VARIANT DATA_BIN [fairseq-train flags]"
shift
text_folder "$@"
shift
find_environment
recipe=(
    --task normgrowth_lm --sample-break-mode eos --tokens-per-sample 700
    --arch "normgrowth_$variant" --criterion sentence_mean_loss
    --optimizer adam --weight-decay 0.01 --clip-norm 0.0
    --lr 1e-3 --lr-scheduler fixed --max-epoch 5 --seed 1
    --save-initial --norm-log-interval 25 --norm-log-layers
)
train_recipe "checkpoints/normgrowth_$variant" 16 '' "$data" "$@"
