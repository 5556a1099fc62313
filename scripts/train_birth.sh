#!/usr/bin/env bash
# Train an induction-head model on bigram sequences with triggers, following its memories: the original's example.
#
#   scripts/train_birth.sh [CORPUS_OR_STATS] [fairseq-train flags]
#
# CORPUS_OR_STATS is any text, or the .json of preprocessing/bigram_statistics.py; by default the statistics of four of
# Shakespeare's plays, which are written to SAVE_DIR/bigrams.json. Your flags come last and win. Called again, it goes
# on from SAVE_DIR/checkpoint_last.pt.
#
# The model is the simplified one of width 256 with frozen embeddings: 1,000 updates of 512 sequences of 256 tokens. A
# setting for a minute:
#
#   SEQUENCES=32 scripts/train_birth.sh --ihead-dim 128 --tokens-per-sample 128 --lr 0.2 --max-update 601
#
# Beside the checkpoints it leaves probes.jsonl: losses, accuracies, attention and memories every 5 updates
# (--probe-interval 5).
#
#   ARCH=ihead_basic   or ihead_full: a standard transformer of two layers, width 64 and one head, 1,000 updates of 32
#                      sequences of 128 tokens with AdamW; or transnormer_lm, normgrowth_lm: language models as large
#   TRIGGERS=fixed     the most frequent symbols, or random: each sequence has its own
#   LOSS=head          tokens that it learns from: outputs from their second occurrence on; or all, as all but
#                      ihead_basic do
#   SAVE_DIR=checkpoints/birth  where all of it goes, with train.log (JSON) and command.log
#   SEQUENCES=512      sequences per update, whatever the number of processes; 32 of all but ihead_basic
#   BATCH_SIZE=N       sequences a process holds at once (default: 64 where that fits, else its share)
#   NPROC=1            processes on a machine without GPU
#   DRY_RUN=1          only print the command
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

corpus=
case ${1-} in
    -h | --help) usage && exit ;;
    -* | '') ;;
    *) corpus=$1 && shift ;;
esac
[[ -z $corpus || (-f $corpus && -s $corpus) || ${DRY_RUN:-0} == 1 ]] ||
    die "$corpus is no file of text or statistics, or it is empty" \
        "usage: $0 [CORPUS_OR_STATS] [fairseq-train flags]"
arch=$(flag --arch "${ARCH:-ihead_basic}" "$@")
standard=(--tokens-per-sample 128 --optimizer adam --lr 0.003 --weight-decay 0.01)
case $arch in
    ihead_basic)
        loss=${LOSS:-head} sequences=512 betas="(0.9, 0.95)"
        recipe=(--arch ihead_basic --ihead-dim 256 --freeze-embeddings --freeze-output --tokens-per-sample 256
            --optimizer sgd --lr 0.03 --weight-decay 1e-4)
        ;;
    ihead_full)
        loss=${LOSS:-all} sequences=32 betas="(0.9, 0.99)"
        recipe=("${standard[@]}" --arch ihead_full --ihead-dim 64 --ihead-heads 1)
        ;;
    transnormer_lm | normgrowth_lm)
        loss=${LOSS:-all} sequences=32 betas="(0.9, 0.99)"
        recipe=("${standard[@]}" --arch "$arch" --decoder-layers 2 --decoder-embed-dim 64 --decoder-attention-heads 1
            --decoder-ffn-embed-dim 256 --dropout 0)
        [[ $arch != normgrowth_lm ]] || recipe+=(--norm-placement pre --final-norm)
        ;;
    *) die "no recipe for ARCH=$arch; there are: ihead_basic ihead_full transnormer_lm normgrowth_lm" ;;
esac
case $(flag --optimizer '' "${recipe[@]}" "$@") in # it may be the user's
    sgd) recipe+=(--momentum 0.9) ;;
    adam) recipe+=(--adam-betas "$betas") ;;
esac
case $loss in
    head) recipe+=(--loss-head-only) ;;
    all) ;;
    *) die "LOSS is '$loss'; it can be: head all" ;;
esac
case ${TRIGGERS:-fixed} in
    fixed) recipe+=(--fixed-triggers) ;;
    random) ;;
    *) die "TRIGGERS is '$TRIGGERS'; it can be: fixed random" ;;
esac
recipe+=(--task bigram_icl --num-triggers 5 --lr-scheduler fixed --max-update 1000 --seed 1
    --criterion bigram_icl --log-probes --probe-interval 5)
# Else it is the loss, or the user's own, which may be one to be minimised.
if [[ $(flag --num-triggers 5 "$@") != 0 ]] &&
    ! has --no-output-counter "$@" && ! has --best-checkpoint-metric "$@"; then
    recipe+=(--best-checkpoint-metric acc_end --maximize-best-checkpoint-metric)
fi

find_environment
save_dir=$(flag --save-dir "${SAVE_DIR:-checkpoints/birth}" "$@")
if [[ $corpus == *.json ]]; then
    recipe+=(--bigram-stats "$corpus")
elif [[ -n $corpus ]]; then
    recipe+=(--corpus "$corpus")
elif ! has --corpus "$@" && ! has --bigram-stats "$@"; then
    recipe+=(--bigram-stats "$save_dir/bigrams.json")
    if [[ ! -s $save_dir/bigrams.json && ${DRY_RUN:-0} != 1 ]]; then
        mkdir -p "$save_dir"
        python "$ROOT/preprocessing/bigram_statistics.py" --plays --out "$save_dir/bigrams.json" >&2
    fi
fi
# A batch of 64 stays nearer to the cache than one of 512; more micro-batches make the same update.
batch='' update=${SEQUENCES:-$sequences}
if ! has --update-freq "$@" && [[ $update =~ ^[1-9][0-9]*$ ]] &&
    ((update % (64 * ${WORLD_SIZE:-${NPROC:-1}}) == 0)); then
    batch=64
fi
train_recipe checkpoints/birth "$sequences" "$batch" '' "$@"
