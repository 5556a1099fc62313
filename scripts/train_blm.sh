#!/usr/bin/env bash
# Pretrain a bidirectional TransNormer as a masked language model with the paper's recipe for WikiText-103.
#
#   scripts/train_blm.sh DATA_BIN [fairseq-train flags]
#
# DATA_BIN is a folder made by a script in preprocessing/, or by fairseq-preprocess --only-source. Your flags come last
# and win. Called again, it goes on from SAVE_DIR/checkpoint_last.pt. A sequence is as many whole lines as fit into
# --tokens-per-sample (512); a line that is longer is left out, and the log counts those.
#
#   SAVE_DIR=checkpoints/blm     where checkpoints, train.log (JSON) and command.log go
#   ARCH=roberta_transnormer_t2  or roberta_transnormer_t1, or any --arch of a masked language model
#   SEQUENCES=512                sequences per update, whatever the number of processes
#   BATCH_SIZE=4                 sequences a process holds at once; less needs less memory; an update has as many
#   NPROC=1                      processes on a machine without GPU
#   DRY_RUN=1                    only print the command
#
# Several GPUs, several machines, SLURM: as for scripts/train_alm.sh, see its head.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

text_folder "$@"
shift
find_environment
max_update=$(flag --max-update 50000 "$@")
recipe=(
    --task masked_lm --criterion masked_lm --tokens-per-sample 512 --sample-break-mode complete
    --arch "${ARCH:-roberta_transnormer_t2}" --dropout 0.1 --attention-dropout 0.1
    --optimizer adam --adam-betas "(0.9, 0.98)" --adam-eps 1e-06 --weight-decay 0.01 --clip-norm 0.0
    --lr 5e-4 --lr-scheduler polynomial_decay --power 1 --end-learning-rate 0 --warmup-updates 3000
    --max-update "$max_update" --total-num-update "$max_update" --seed 1
    --skip-invalid-size-inputs-valid-test # in training fairseq always does, in validation it would stop
    --no-epoch-checkpoints --save-interval-updates 1000 --keep-interval-updates 1
)
train_recipe checkpoints/blm 512 4 "$data" "$@"
