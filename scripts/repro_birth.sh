#!/usr/bin/env bash
# How induction heads and memories grow, at a size for two cores: the runs and figures of the paper, and the phenomena.
#
#   bash scripts/repro_birth.sh [--fresh]
#
# Makes .venv first where it is missing. Trains small models on bigram sequences with triggers: the simplified model,
# also with matrices that are frozen at first, with random triggers, with outputs drawn in two ways and with a feed-forward
# map; the original's example with an eighth of its batch; standard transformers of two layers and of one. Draws their
# curves, attention maps and memories and compares all of it with what is known: status 3 if something differs.
# Everything goes to outputs/birth/; phenomena.json and the figures are what to read. Called again, it keeps what is
# finished and goes on with the rest.
#
#   --fresh             remove outputs/birth/ first
#   OUT=outputs/birth   another folder
#   CORPUS=FILE         any text, or the .json of preprocessing/bigram_statistics.py; default: four of Shakespeare's
#                       plays
#   SEED=0              of weights and sequences, the first of several
#   SEEDS=3             of the runs that vary much; two of those of two layers and one
#   MAX_UPDATE=1001     of the longest runs; the others have 601, but never more
#   JOBS=2              trainings side by side, a core each
#   DRY_RUN=1           only print the commands of the trainings
#   NO_CHECK=1          only draw, for other settings than these
#   NO_VENV=1           use the environment that is active instead of .venv
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_birth.sh"

seeds=${SEEDS:-3}
common=(--cpu --no-progress-bar --log-interval 20 --probe-interval 20 --save-interval-updates 100
    --keep-interval-updates -1)
quick="--ihead-dim 128 --tokens-per-sample 128 --lr 0.2"
k1=200:layers.0.wk.weight k2=200:layers.1.wk.weight o2=200:layers.1.wo.weight
# run: name, seeds, sequences of an update, updates, settings of scripts/train_birth.sh, flags of its own
runs=(
    "example:1:64:1001::--ihead-dim 128" # the longest first
    "full:2:32:1001:ARCH=ihead_full:"
    "one_layer:2:32:1001:ARCH=ihead_full:--ihead-layers 1"
    "full_random:1:32:1001:ARCH=ihead_full TRIGGERS=random:"
    "basic:$seeds:32:601::$quick"
    "keys:$seeds:32:601::$quick --freeze-until $k1,$k2"
    "wo2:$seeds:32:601::$quick --freeze-until $o2"
    "wk1:1:32:601::$quick --freeze-until $k1"
    "wk2:1:32:601::$quick --freeze-until $k2"
    "random:1:32:601:TRIGGERS=random:$quick"
    "ffn:1:32:601:LOSS=all:$quick --final-ffn"
    "ffn_random:1:32:601:LOSS=all TRIGGERS=random:$quick --final-ffn"
    "uniform_on_bigram:1:32:601:LOSS=all:$quick --final-ffn --valid-output-dist bigram"
    "bigram_on_bigram:1:32:601:LOSS=all:$quick --final-ffn --output-dist bigram"
    "bigram_on_uniform:1:32:601:LOSS=all:$quick --final-ffn --output-dist bigram --valid-output-dist uniform"
)

figures() {
    local plot=birth/curves last early models
    begin '[3/4] figures'
    of basic "all trained" keys "keys frozen" wk1 "\$W_K^1\$ frozen" \
        wk2 "\$W_K^2\$ frozen" wo2 "\$W_O^2\$ frozen"
    draw freezing $plot "${of[@]}" --plot accuracy,recall
    of ffn fixed ffn_random random
    draw triggers $plot "${of[@]}" --plot losses
    finish
    of ffn "trained on uniform, tested on it" uniform_on_bigram "trained on uniform, tested on bigram" \
        bigram_on_bigram "trained on bigram, tested on it" \
        bigram_on_uniform "trained on bigram, tested on uniform"
    draw outputs $plot "${of[@]}" --plot accuracy
    of ffn "fixed triggers" ffn_random "random triggers"
    draw feed_forward $plot "${of[@]}" --plot accuracy,recall,feed_forward
    finish
    of full "two layers" one_layer "one layer" full_random "two layers, random triggers"
    draw layers $plot "${of[@]}" --plot losses,accuracy
    of example "the example, an eighth" basic "quick" random "random triggers" full "standard transformer"
    draw probes $plot "${of[@]}" --plot accuracy,recall,attention
    finish
    last=$out/basic-1/checkpoint_last.pt early=$out/basic-1/checkpoint_1_100.pt
    models=("at the end=$last")
    [[ ! -s $early ]] || models=("after 100 updates=$early" "${models[@]}")
    draw attention_maps birth/attention_maps "${models[@]}"
    draw memories birth/memories "${models[@]}"
    finish
    end
}

main() {
    prepare outputs/birth \
        "Birth of a transformer: small models, all figures and phenomena; about 20 minutes on 2 cores." "$@"
    text '[1/4]'
    training '[2/4]'
    figures
    compare '[4/4]' birth
}

# In braces, for bash reads a script as it goes and this one may be changed while it runs.
{
    main "$@"
    exit
}
