# shellcheck shell=bash
# What the fine-tuning scripts share.  Source this file after _run.sh.
#
#   about_task TASK DATA PRETRAINED ARCH "$@"   data, pretrained, and what its folder and the checkpoint say of TASK ->
#                                          task, metric, subsets, facts, flags; ARCH is that of random weights
#   finetune SAVE_DIR N "$@"               note what is trained from where, then train with the flags in `recipe`
#   finetune_dslm TASK EPOCHS WARMUP N "$@"   all of it, by the recipe of DeepScaleLM
#
# "$@" are the user's flags for fairseq-train; they are put last and win.

about_task() {
    local lines told name value model=()
    data=$2 pretrained=$3 arch=${ARCH:-$4}
    [[ $pretrained == none || -f $pretrained ]] || die "no checkpoint $pretrained; 'none' starts from random weights"
    find_environment
    [[ $pretrained == none ]] || model=("$pretrained")
    for name in --max-positions --max-option-length; do
        value=$(flag "$name" "" "${@:5}")
        [[ -z $value ]] || model+=("$name=$value")
    done
    lines=$(python -m fairseq_transnorm.measure.fine_tuning "$1" "$data" ${model[@]+"${model[@]}"}) || exit 1
    mapfile -t told <<<"$lines"
    # shellcheck disable=SC2034  # for the scripts that source this
    task=${told[0]} metric=${told[1]} subsets=${told[2]} facts=${told[3]} flags=("${told[@]:4}")
    if [[ $pretrained == none ]]; then
        flags+=(--arch "$arch")
    else
        flags+=(--finetune-from-model "$pretrained") # at the first start only
    fi
}

# shellcheck disable=SC2154  # seed is of the script that sources this
finetune() {
    local start sequences=$2
    SAVE_DIR=$(flag --save-dir "${SAVE_DIR:-$1}" "${@:3}")
    if [[ ${DRY_RUN:-0} != 1 ]]; then # for the table of results
        start=$pretrained
        if [[ $pretrained == none ]]; then
            start="random weights of $(flag --arch "$arch" "${@:3}")"
        else
            start=$(cd "$(dirname "$pretrained")" && pwd)/$(basename "$pretrained")
        fi
        note_run "$SAVE_DIR" "$start" "$seed"
    fi
    train_recipe "$SAVE_DIR" "$sequences" "" "$data" "${@:3}"
}

# note_run FOLDER START SEED: write FOLDER/finetune.json, unless it is of other data, weights or another seed.
note_run() {
    python - "$1" "$task" "$metric" "$2" "$3" "$facts" <<'EOF' || die "give another SAVE_DIR"
import json, os, sys
from pathlib import Path

folder, task, metric, start, seed, facts = sys.argv[1:]
note = {"task": task, "metric": metric, "start": start, "seed": int(seed), **json.loads(facts)}
path = Path(folder, "finetune.json")
old = json.loads(path.read_text()) if path.exists() else {}
# a run of an older version, which noted less, goes on
if other := [f"{key} {old[key]} there, {note[key]} now" for key in note if key in old and old[key] != note[key]]:
    sys.exit(f"{folder} is of another fine-tuning: {'; '.join(other)}")
path.parent.mkdir(parents=True, exist_ok=True)
temporary = path.with_name(f".{path.name}.{os.getpid()}")
temporary.write_text(json.dumps(old | note) + "\n")
temporary.replace(path)
EOF
}

# finetune_dslm TASK EPOCHS WARMUP N DATA PRETRAINED FLAGS...: WARMUP percent of the updates, N examples an update.
finetune_dslm() {
    local name=$1 epochs=$2 percent=$3 sequences=${SEQUENCES:-$4} most lr seed
    shift 4
    case ${1:---help} in
        -h | --help) usage && exit ;;
    esac
    (($# >= 2)) || die "give a data folder and a checkpoint or 'none': $0 DATA PRETRAINED [fairseq-train flags]"
    about_task "$name" "$1" "$2" dslm_bert "${@:3}"
    shift 2
    [[ " ${flags[*]} " == *" --task dslm_"* ]] ||
        die "$data was made for another task than DeepScaleLM's; make it with preprocessing/glue.py $name --dslm"
    check_number SEQUENCES "$sequences"
    epochs=$(flag --max-epoch "$epochs" "$@")
    check_number --max-epoch "$epochs"
    if has --update-freq "$@" && ! has --max-update "$@"; then
        die "--update-freq changes the batch, from which the number of updates follows; give SEQUENCES=... instead," \
            "or --max-update as well"
    fi
    [[ $facts =~ \"train\":\ ([0-9]+) ]]
    most=$(((BASH_REMATCH[1] + sequences - 1) / sequences)) # updates an epoch
    most=$(flag --max-update $((most * epochs)) "$@")
    check_number --max-update "$most"
    lr=$(flag --lr "${LR:-2e-5}" "$@")
    seed=$(flag --seed "${SEED:-1}" "$@")
    # shellcheck disable=SC2034  # for train_recipe
    recipe=(
        --max-positions 512 --valid-subset "$subsets"
        "${flags[@]}" --dropout 0.1 --attention-dropout 0.1 --pooler-dropout 0.1
        --optimizer bert_adam --adam-betas "(0.9, 0.999)" --adam-eps 1e-08 --weight-decay 0.01 --clip-norm 1.0
        --lr "$lr" --lr-scheduler polynomial_decay --power 1 --end-learning-rate 0
        --warmup-updates $((most * percent / 100)) --max-update "$most" --total-num-update "$most"
        --seed "$seed" --best-checkpoint-metric "$metric" --maximize-best-checkpoint-metric --no-epoch-checkpoints
        --find-unused-parameters # the heads of pretraining
    )
    ! has --fp16 "$@" || recipe+=(--fp16-no-flatten-grads) # bert_adam tells matrices from biases
    finetune "checkpoints/finetune/$task/lr${lr}_seed$seed" "$sequences" "$@"
}
