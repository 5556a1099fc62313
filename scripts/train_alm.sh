#!/usr/bin/env bash
# Train an autoregressive TransNormer with the paper's recipe for WikiText-103.
#
#   scripts/train_alm.sh DATA_BIN [fairseq-train flags]
#
# DATA_BIN is a folder made by a script in preprocessing/, or by fairseq-preprocess --only-source. Your flags come last
# and win. Called again, it goes on from SAVE_DIR/checkpoint_last.pt.
#
#   SAVE_DIR=checkpoints/alm  where checkpoints, train.log (JSON) and command.log go
#   ARCH=transnormer_t2       or transnormer_t1, or any --arch
#   SEQUENCES=128             sequences per update, whatever the number of processes
#   BATCH_SIZE=8              sequences a process holds at once; less needs less memory; an update has as many
#   NPROC=1                   processes on a machine without GPU
#   DRY_RUN=1                 only print the command
#
# One GPU or all GPUs of a machine:  scripts/train_alm.sh DATA_BIN         (CUDA_VISIBLE_DEVICES chooses)
# Several machines, on each:         torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:29500 --no-python \
#                                        scripts/train_alm.sh DATA_BIN
# SLURM:                             srun --nodes 2 --ntasks-per-node 1 --gpus-per-node 8 scripts/train_alm.sh DATA_BIN
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

text_folder "$@"
shift
find_environment
recipe=(
    --task language_modeling --tokens-per-sample 512 --sample-break-mode none
    --arch "${ARCH:-transnormer_t2}" --dropout 0.1 --criterion cross_entropy
    --optimizer adam --adam-betas "(0.9, 0.98)" --weight-decay 0.01 --clip-norm 0.0
    --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates 8000 --warmup-init-lr 1e-07
    --max-update 100000 --seed 1
    --no-epoch-checkpoints --save-interval-updates 1000 --keep-interval-updates 1
)
train_recipe checkpoints/alm 128 8 "$data" "$@"
