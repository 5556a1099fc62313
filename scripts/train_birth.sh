#!/usr/bin/env bash
# Train an induction-head model on bigram sequences with triggers, following its memories: the original's example.
#
#   scripts/train_birth.sh [CORPUS_OR_STATS] [fairseq-train flags]
#
# CORPUS_OR_STATS is any text, or the .json of preprocessing/bigram_statistics.py; by default the statistics of four of
# Shakespeare's plays, which are written to SAVE_DIR/bigrams.json. Your flags come last and win. Called again, it goes on
# from SAVE_DIR/checkpoint_last.pt.
#
# The model is the simplified one (ihead_basic, width 256) with frozen embeddings; 1,000 updates of 512 sequences of 256
# tokens take about an hour on two cores and 2 GB. A quick setting, a minute:
#
#   SEQUENCES=32 scripts/train_birth.sh --ihead-dim 128 --tokens-per-sample 128 --lr 0.2 --max-update 601
#
# Beside the checkpoints it leaves probes.jsonl: accuracies, attention and memory probes every 5 updates
# (--probe-interval 5).
#
#   SAVE_DIR=checkpoints/birth  where all of it goes, with train.log (JSON) and command.log
#   SEQUENCES=512      sequences per update, whatever the number of processes
#   BATCH_SIZE=N       sequences a process holds at once (default: its share); less needs less memory
#   NPROC=1            processes on a machine without GPU
#   DRY_RUN=1          only print the command
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

corpus=
case ${1-} in
    -h | --help) usage && exit ;;
    '') shift $(($# > 0)) ;;
    -*) ;;
    *) corpus=$1 && shift ;;
esac
[[ -z $corpus || -s $corpus ]] || die "no text or statistics $corpus, or it is empty" \
    "usage: $0 [CORPUS_OR_STATS] [fairseq-train flags]"
find_environment
save_dir=$(flag --save-dir "${SAVE_DIR:-checkpoints/birth}" "$@")
source=(--corpus "$corpus")
if [[ $corpus == *.json ]]; then
    source=(--bigram-stats "$corpus")
elif has --corpus "$@" || has --bigram-stats "$@"; then
    [[ -z $corpus ]] || die "the corpus is given twice: $corpus, and as a flag"
    source=()
elif [[ -z $corpus ]]; then
    source=(--bigram-stats "$save_dir/bigrams.json")
    if [[ ! -s $save_dir/bigrams.json && ${DRY_RUN:-0} != 1 ]]; then
        mkdir -p "$save_dir"
        python "$ROOT/preprocessing/bigram_statistics.py" --plays --out "$save_dir/bigrams.json" >&2
    fi
fi
recipe=(
    --task bigram_icl ${source[@]+"${source[@]}"} --num-triggers 5 --fixed-triggers --tokens-per-sample 256
    --arch ihead_basic --ihead-dim 256 --freeze-embeddings --freeze-output
    --criterion bigram_icl --loss-head-only --log-probes --probe-interval 5
    --optimizer sgd --momentum 0.9 --weight-decay 1e-4 --lr 0.03 --lr-scheduler fixed
    --max-update 1000 --best-checkpoint-metric acc_end --maximize-best-checkpoint-metric --seed 1
)
train_recipe checkpoints/birth 512 '' '' "$@"
