#!/usr/bin/env bash
# Does linear attention grow an induction head? Models of two layers and one head on bigram sequences with triggers.
#
#   bash scripts/repro/linear_induction.sh [--fresh]
#
# Makes .venv first where it is missing. Trains with the same settings: standard transformers of two layers and of one,
# and normgrowth_lm, which all have a softmax; transnormer_lm with linear attention alone, in two layers and in one,
# with relative and absolute positions, and with either of them; and with a softmax in the first layer, in blocks or
# over all. Draws accuracy, where their attention looks, what copying cannot do without, and the maps of a linear model.
# Everything goes to outputs/linear_induction/; accuracy.png, attention.png and ablation.png are what to read. Called
# again, it keeps what is finished and goes on with the rest.
#
#   --fresh             remove outputs/linear_induction/ first
#   OUT=outputs/linear_induction   another folder
#   CORPUS=FILE         any text, or the .json of preprocessing/bigram_statistics.py; default: four of Shakespeare's
#                       plays
#   SEED=0              of weights and sequences, the first of several
#   SEEDS=2             of the main runs; the others have one
#   LR=0.003            of all runs
#   MAX_UPDATE=1001     updates of 32 sequences each; 3001 for what grows late
#   JOBS=2              trainings side by side, a core each
#   DRY_RUN=1           only print the commands of the trainings
#   NO_VENV=1           use the environment that is active instead of .venv
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../_birth.sh"

seeds=${SEEDS:-2} longest=${MAX_UPDATE:-1001}
common=(--cpu --no-progress-bar --log-interval 20 --probe-interval 20 --lr "${LR:-0.003}" --no-epoch-checkpoints)
softmax=ARCH=ihead_full linear=ARCH=transnormer_lm
# run: name, seeds, sequences of an update, updates, settings of scripts/train_birth.sh, flags of its own
runs=(
    "softmax:$seeds:32:$longest:$softmax:"
    "softmax_one_layer:1:32:$longest:$softmax:--ihead-layers 1"
    "normgrowth:1:32:$longest:ARCH=normgrowth_lm:"
    "linear:$seeds:32:$longest:$linear:--layer-split 0"
    "linear_one_layer:1:32:$longest:$linear:--layer-split 0 --decoder-layers 1"
    "linear_absolute:$seeds:32:$longest:$linear:--layer-split 0 --lrpe none"
    "linear_relative:1:32:$longest:$linear:--layer-split 0 --abs-pos none"
    "blocks:$seeds:32:$longest:$linear:--block-size 32"
    "whole:1:32:$longest:$linear:--block-size 128"
)

figures() {
    local plot=birth/curves labels folder checkpoints=()
    labels=(softmax softmax linear linear linear_absolute "linear, absolute positions" blocks "blocks, then linear")
    begin '[3/3] figures'
    of "${labels[@]}" linear_relative "linear, relative positions" whole "softmax, then linear" \
        normgrowth "softmax (normgrowth_lm)" softmax_one_layer "softmax, one layer" linear_one_layer "linear, one layer"
    draw accuracy $plot "${of[@]}" --plot accuracy
    of "${labels[@]}"
    draw attention $plot "${of[@]}" --plot accuracy,attention
    finish
    for folder in "${of[@]}"; do checkpoints+=("$folder/checkpoint_last.pt"); done
    draw ablation birth/ablation "${checkpoints[@]}"
    draw attention_maps birth/attention_maps "softmax=$out/softmax-1/checkpoint_last.pt" \
        "linear=$out/linear-1/checkpoint_last.pt"
    finish
    end
}

main() {
    prepare outputs/linear_induction \
        "Linear attention and induction heads: thirteen small models; about 12 minutes on 2 cores." "$@"
    text '[1/3]'
    training '[2/3]'
    figures
    cat "$out/logs/accuracy.log" "$out/logs/ablation.log"
    report_missed
}

# In braces, for bash reads a script as it goes and this one may be changed while it runs.
{
    main "$@"
    exit
}
