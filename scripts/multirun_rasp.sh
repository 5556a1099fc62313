#!/usr/bin/env bash
# Train the transformers behind the paper's tables on one formal language: those of a program's size, and smaller ones.
#
#   lang=LANGUAGE heads=H layers=L scripts/multirun_rasp.sh [--print] [--fresh] [fairseq-train flags]
#
# For each lr and each gamma: L layers and H heads; if H > 1, one head fewer; if L > 1, one layer fewer, and one layer
# fewer with twice the heads and twice the width. At the end it writes summary.md with tables. Called again, it keeps
# what is finished and goes on with the rest. A training that fails is named at the end, with status 1; the others go on.
#
# The original's setting takes a GPU, or days; your flags reduce it:
#
#   lang=reverse_26 heads=1 layers=2 dim=64 epochs=15 LR=0.001 JOBS=2 \
#       scripts/multirun_rasp.sh --max-length 20 --train-size 10000 --valid-size 500 --test-size 500
#
#   --print            only print the commands of the trainings, as DRY_RUN=1
#   --fresh            remove OUT first
#   OUT=checkpoints/rasp/SUBFOLDER/LANGUAGE_LxL_HxH    where all of it goes, a folder for each training
#   JOBS=1             trainings side by side, a core each, or in turn on the GPUs (GPUS=0: on none)
#   dim=256 epochs=100 subfolder=example, and the other settings of scripts/train_rasp.sh
#   LR="0.0003 0.0001" GAMMA="0.98 0.99"    rates and their factors
set -euo pipefail
jobs=${JOBS:-1}
source "$(dirname "${BASH_SOURCE[0]}")/_rasp.sh"

# plan_runs: set runs, those of one rate and one factor together.
plan_runs() {
    local rate factor size sizes L H D
    sizes=("$layers $heads $dim")
    ((heads == 1)) || sizes+=("$layers $((heads - 1)) $dim")
    ((layers == 1)) || sizes+=("$((layers - 1)) $heads $dim" "$((layers - 1)) $((2 * heads)) $((2 * dim))")
    runs=()
    for rate in ${LR:-0.0003 0.0001}; do
        for factor in ${GAMMA:-0.98 0.99}; do
            for size in "${sizes[@]}"; do
                read -r L H D <<<"$size"
                runs+=("L${L}_H${H}_D${D}_lr${rate}_gamma$factor:layers=$L heads=$H dim=$D lr=$rate gamma=$factor:")
            done
        done
    done
}

# find_devices [GPUS]: set devices to the GPUs that a training may have, one each; 0 for none of them.
find_devices() {
    local visible
    [[ $1 != 0 ]] || return 0
    visible=$(python -c 'import torch; print(*range(torch.cuda.device_count()))')
    read -ra devices <<<"$visible"
    [[ -z ${CUDA_VISIBLE_DEVICES-} || -z $visible ]] || IFS=, read -ra devices <<<"$CUDA_VISIBLE_DEVICES"
}

# attempt NAME FOLDER SETTINGS FLAGS: a training; a failure is noted in FOLDER/failed.
# shellcheck disable=SC2329  # start calls it
attempt() {
    local status=0 started=$SECONDS
    rm -f "$2/failed"
    train "${@:2}" || status=$?
    if ((status == 0)); then
        say "  $1: done after $(clock $((SECONDS - started)))" >&3
    elif ((status < 128)); then # else it was told to end
        mkdir -p "$2" && echo "$status" >"$2/failed"
        say "  $1: failed with status $status" >&3
    fi
}

# shellcheck disable=SC2329  # each_run calls it
next_run() {
    if [[ -s $2/done ]]; then
        reuse "  $1"
        return
    fi
    if ((${#devices[@]})); then
        export GPUS=1 CUDA_VISIBLE_DEVICES=${devices[begun % ${#devices[@]}]}
    fi
    begun=$((begun + 1))
    start "$1" attempt "$@"
    finish : $((jobs - 1))
}

main() {
    local fresh=0 begun=0 status=0 devices=() failed=() folder name gpus=${GPUS-}
    while (($#)); do
        case $1 in
            -h | --help) usage && exit ;;
            --print) export DRY_RUN=1 ;; # for scripts/train_rasp.sh
            --fresh) fresh=1 ;;
            -*) break ;;
            *) die "unknown argument '$1'" \
                "usage: lang=LANGUAGE heads=H layers=L bash $0 [--print] [--fresh] [fairseq-train flags]" ;;
        esac
        shift
    done
    [[ -n ${lang:-} ]] ||
        die "which language? lang=reverse_26 heads=1 layers=2 $0; python preprocessing/languages.py list shows all"
    export lang epochs=${epochs:-100}
    subfolder=${subfolder-example} heads=${heads:-} layers=${layers:-} dim=${dim:-256}
    check_number "heads, those of the program," "$heads"
    check_number "layers, those of the program," "$layers"
    check_number dim "$dim"
    check_number JOBS "$jobs"
    [[ ${small:-false} != true ]] || die "small=true gives all models one size; heads=, layers= and dim= say which"
    for name in --rasp-layers --rasp-heads --rasp-dim; do
        ! has "$name" "$@" || die "$name gives all models one size; heads=, layers= and dim= say which"
    done
    common=("$@")
    plan_runs
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        out=${OUT:-checkpoints/rasp/${subfolder:+$subfolder/}${lang}_L${layers}_H$heads}
        print_runs
        exit
    fi
    NO_VENV=1
    open_folder "checkpoints/rasp/${subfolder:+$subfolder/}${lang}_L${layers}_H$heads" \
        "$(printf '%q ' "$lang" "$epochs" "${runs[@]}" "${position-}" "${attn_c-}" "${dropout-}" "${reset_patience-}" \
            "${batch_size-}" "${BATCH_SIZE-}" "${overfit-}" "${tinyset-}" "${traincrop-}" "${SEED-}" "$@")"
    find_devices "$gpus"
    exec 3>&1
    say "${#runs[@]} trainings on $lang, $jobs at a time; their logs are in $out/logs/"
    each_run next_run
    finish
    python analysis/rasp/summary.py "$out" --out "$out/summary" || status=$?
    for folder in "$out"/*/failed; do
        [[ ! -e $folder ]] || failed+=("$(basename "$(dirname "$folder")")")
    done
    ((${#failed[@]} == 0)) || die "these failed: ${failed[*]}" "the reasons are in $out/logs/; call again to try again"
    return "$status"
}

# In braces, for bash reads a script as it goes and this one may be changed while it runs.
{
    main "$@"
    exit
}
