# shellcheck shell=bash
# What the training and evaluation scripts share.  Source this file.
#
#   find_environment          put fairseq's commands first in PATH, set USER_DIR
#   check_data DATA SPLIT...  refuse a data folder that lacks a dictionary or a split
#   text_folder "$@"          --help, or the folder of text that the first argument names -> data
#   plan_workers "$@"         count the processes of all nodes -> world_size, worker_flags, worker_ranks
#   plan_batch N B "$@"       flags that make N sequences per update -> batch_flags
#   train_recipe SAVE_DIR N B DATA "$@"        plan, then train with the flags in `recipe`, or go on where a run
#                                              stopped; DATA is '' for a task that has no data folder
#   run SAVE_DIR [DATA] FLAGS...               train into SAVE_DIR
#   trainer=(COMMAND...)                       an entry point of the package in place of fairseq-train, which also knows
#                                              what to do with an interrupt and with a run that is finished
#
# "$@" are the user's flags for fairseq-train; they are put last and win.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
trainer=(fairseq-train)

die() {
    printf 'error: %s\n' "$1" >&2
    shift
    (($# == 0)) || printf '       %s\n' "$@" >&2
    exit 1
}

# The comment at the top of the calling script.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# flag NAME DEFAULT ARGS...: what the last --NAME VALUE or --NAME=VALUE among ARGS says.
flag() {
    local name=$1 value=$2
    shift 2
    while (($#)); do
        case $1 in
            "$name") value=${2-} ;;
            "$name="*) value=${1#*=} ;;
        esac
        shift
    done
    printf '%s' "$value"
}

# has NAME ARGS...: is NAME, or NAME=..., among ARGS?
has() {
    local name=$1 arg
    shift
    for arg; do [[ $arg == "$name" || $arg == "$name="* ]] && return 0; done
    return 1
}

check_number() { [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 is '$2', not a whole number of at least 1"; }

# An activated environment, else .venv of the repository, else whatever PATH has.
find_environment() {
    local bin
    for bin in ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin"} ${CONDA_PREFIX:+"$CONDA_PREFIX/bin"} "$ROOT/.venv/bin"; do
        if [[ -x $bin/fairseq-train ]]; then
            PATH=$bin:$PATH
            break
        fi
    done
    command -v fairseq-train >/dev/null || die "no fairseq-train: not in an activated environment, $ROOT/.venv or PATH." \
        "bash $ROOT/scripts/demo.sh makes .venv; pip install $ROOT installs into your own environment."
    # Looked up without importing it, and without regard to the folder we are in.
    USER_DIR=$(python -P -c 'if 1:
        from importlib.util import find_spec
        spec = find_spec("fairseq_transnorm")
        print(spec.submodule_search_locations[0] if spec else "")') || die "python of the environment does not run"
    if [[ -z $USER_DIR ]]; then # not installed: the repository as it is
        USER_DIR=$ROOT/fairseq_transnorm
        export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
    fi
}

# check_data DATA SPLIT...; DATA may be several folders with ':' between, as fairseq takes them.
check_data() {
    local data=$1 folder folders split
    shift
    IFS=: read -ra folders <<<"$data"
    for folder in "${folders[@]}"; do
        [[ -d $folder ]] || die "no data folder $folder" "preprocessing/ has scripts that make one"
    done
    folder=${data%%:*}
    for split in dict.txt "${@/%/.idx}"; do
        [[ -s $folder/$split ]] || die "data folder $folder lacks $split; it has: $(ls -m "$folder")" \
            "It should be what fairseq-preprocess or a script in preprocessing/ wrote."
    done
    for split; do
        [[ -s $folder/$split.bin ]] || die "the split $split in $folder has no text ($split.bin is missing or empty)"
    done
}

# text_folder ARGS...: print the help, or set data to the folder, made for language models, that ARGS begin with.
text_folder() {
    case ${1:---help} in
        -h | --help) usage && exit ;;
        -*) die "the data folder comes first: $0 DATA_BIN [fairseq-train flags]" ;;
    esac
    # shellcheck disable=SC2034  # for the script that sources this
    data=$1
    check_data "$data" train valid
}

free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# plan_workers FLAGS...: what fairseq must be told so that it runs on all that there is. Sets
#   world_size     processes of all nodes together
#   worker_flags   flags for each of them
#   worker_ranks   ranks to start here one by one; empty: fairseq starts its own, or something else started us
#   main_process   1 in the process that keeps the log, else 0
# Read: NPROC (processes on a CPU), GPUS (of this node; default: counted), and what torchrun and SLURM set.
#
# Left alone, fairseq takes the GPUs of one node for all there is: with one GPU on each of several nodes it would train
# a model on each. Hence it is told the world size; how the processes find each other stays its own business.
plan_workers() {
    local gpus=0 nodes=${SLURM_NNODES:-1} tasks=${SLURM_NTASKS:-1} rank
    world_size=1 worker_flags=() worker_ranks=() main_process=1
    local cpu_flags=(--cpu --distributed-no-spawn --distributed-backend gloo --ddp-backend legacy_ddp)
    if ! has --cpu "$@"; then
        gpus=${GPUS-}
        [[ -n $gpus ]] || gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
    fi
    if has --distributed-init-method "$@"; then # in the user's own hands
        world_size=$(flag --distributed-world-size $((gpus > 0 ? gpus : 1)) "$@")
        (($(flag --distributed-rank 0 "$@") == 0)) || main_process=0
    elif [[ -n ${WORLD_SIZE-} && -n ${RANK-} && -n ${MASTER_ADDR-} && -n ${MASTER_PORT-} ]]; then # torchrun
        world_size=$WORLD_SIZE
        ((RANK == 0)) || main_process=0
        worker_flags=(--distributed-world-size "$world_size")
        ((gpus > 0)) || worker_flags+=("${cpu_flags[@]}" --distributed-init-method env:// --distributed-rank "$RANK")
    elif [[ -n ${SLURM_STEP_ID-} ]] && ((nodes > 1 || tasks > 1)); then # srun
        ((tasks >= nodes)) || tasks=$nodes
        ((gpus > 0)) || die "srun of $tasks tasks without GPUs: fairseq cannot do that; start torchrun on each node"
        if ((tasks != nodes && tasks != nodes * gpus)); then
            die "srun starts $tasks tasks on $nodes nodes, and each of them sees $gpus GPUs." \
                "Use one task a node (--ntasks-per-node 1), or one a GPU of which each sees all GPUs of its node" \
                "(--gpus-per-node, not --gpus-per-task)."
        fi
        world_size=$((nodes * gpus))
        ((${SLURM_PROCID:-0} == 0)) || main_process=0
        worker_flags=(--distributed-world-size "$world_size" --distributed-port $((10000 + SLURM_JOB_ID % 50000)))
        export SLURM_NTASKS=$tasks # fairseq counts on it
    elif ((nodes > 1)); then
        die "this SLURM job has $nodes nodes, but only this one runs the script" "start it with srun"
    elif ((gpus > 0)); then
        [[ ${NPROC:-1} == 1 ]] || die "NPROC=$NPROC is for CPUs; on GPUs fairseq starts one process each." \
            "Choose GPUs with CUDA_VISIBLE_DEVICES, or add --cpu."
        world_size=$(flag --distributed-world-size "$gpus" "$@")
        unset SLURM_JOB_NODELIST SLURM_STEP_NODELIST # one node: fairseq need not look for others
    else
        world_size=${NPROC:-1}
        check_number NPROC "$world_size"
        worker_flags=(--cpu --distributed-world-size "$world_size")
        if ((world_size > 1)); then
            worker_flags+=("${cpu_flags[@]:1}" --distributed-init-method "tcp://127.0.0.1:$(free_port)")
            for ((rank = 0; rank < world_size; rank++)); do worker_ranks+=("$rank"); done
            export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + world_size - 1) / world_size))}
        fi
    fi
    check_number "the number of processes" "$world_size"
}

# plan_batch SEQUENCES BATCH FLAGS...: BATCH_SIZE or --batch-size sequences a process, else BATCH, else its share of all;
# --update-freq makes up the rest. Sets batch_flags. Call plan_workers first. The sequences of each validation are
# bounded by valid_sequences, when it is set; longest is the tokens of a sequence where no flag of fairseq says it.
plan_batch() {
    local sequences=$1 default=$2 batch tokens room freq size most='' fits=()
    shift 2
    batch=$(flag --batch-size "$(flag --max-sentences "${BATCH_SIZE-}" "$@")" "$@")
    tokens=${longest:-$(flag --tokens-per-sample "$(flag --max-positions 512 "$@")" "$@")}
    if [[ $(flag --sample-break-mode '' "$@") != none && $(flag --task '' "$@") != bigram_icl ]]; then
        most='up to ' # sequences end with a line
    fi
    room=$(flag --max-tokens "" "$@")
    freq=$(flag --update-freq "" "$@")
    check_number SEQUENCES "$sequences"
    check_number --tokens-per-sample "$tokens"
    if [[ -n $room ]]; then # fairseq keeps both limits
        check_number --max-tokens "$room"
        ((room >= tokens)) || die "--max-tokens $room has no room for a sequence of --tokens-per-sample $tokens"
        batch=${batch:-$((room / tokens))}
        check_number "the batch size" "$batch"
        ((batch * tokens <= room)) || batch=$((room / tokens))
    fi
    batch=${batch:-${default:-$((sequences < world_size ? 1 : sequences / world_size))}}
    check_number "the batch size" "$batch"
    if [[ -z $freq ]]; then
        for ((size = 1; size * world_size <= sequences; size++)); do
            ((sequences % (size * world_size))) || fits+=("$size")
        done
        ((${#fits[@]})) || die "$sequences sequences per update cannot be shared by $world_size processes equally." \
            "Use a number of processes that divides $sequences, or ask for another batch: SEQUENCES=..., --update-freq N."
        ((sequences % (batch * world_size) == 0)) ||
            die "$sequences sequences per update cannot be made of $batch a process and $world_size processes." \
                "BATCH_SIZE (or --batch-size) may be: ${fits[*]}. For another batch: SEQUENCES=..., --update-freq N."
        freq=$((sequences / (batch * world_size)))
    fi
    # With its default of 8 the last flag has ve-fairseq leave out the last batch of each epoch and of each validation.
    # shellcheck disable=SC2034  # for the script that sources this
    batch_flags=(--batch-size "$batch" --update-freq "$freq" --required-batch-size-multiple 1)
    if [[ -n ${valid_sequences-} ]]; then
        size=$(flag --batch-size-valid "$(flag --max-sentences-valid "$batch" "$@")" "$@")
        check_number --batch-size-valid "$size"
        # fairseq stops after one batch more than it is told
        batch_flags+=(--max-valid-steps $(((valid_sequences - 1) / (size * world_size))))
    fi
    if ((main_process)) && [[ $freq =~ ^[0-9]+$ ]]; then # else a list, one number an epoch
        sequences=$((batch * world_size * freq))
        printf 'Batch: %d sequences x %s%d tokens = %s%d tokens per update' \
            "$sequences" "$most" "$tokens" "$most" $((sequences * tokens)) >&2
        printf ' (%d sequences in each of %d processes, %d times)\n' "$batch" "$world_size" "$freq" >&2
    fi
}

# What led to the checkpoints, for the reader of later: one block a start.
_log_command() {
    local commit=none
    if command -v git >/dev/null && commit=$(git -C "$ROOT" rev-parse --short=12 HEAD 2>/dev/null); then
        git -C "$ROOT" diff --quiet HEAD 2>/dev/null || commit+=" with changes"
    else
        commit="none (no git repository)"
    fi
    printf '# %s  commit %s\n# %s\n%s\n' "$(date -u '+%Y-%m-%d %H:%M:%S UTC')" "$commit" "$(
        python -c 'if 1:
            import platform
            from importlib.metadata import PackageNotFoundError, version
            found = ["python " + platform.python_version()]
            for name in ("fairseq_transnorm", "ve-fairseq", "fairseq", "torch", "numpy"):
                try:
                    found.append(name + " " + version(name))
                except PackageNotFoundError:
                    pass
            print(", ".join(found))'
    )" "$(printf '%q ' "$@")" >>"$log_dir/command.log"
}

_stop_all() {
    kill "${pids[@]}" 2>/dev/null || true
    wait || true
}

# The trainer takes an interrupt itself: hand it on, once, and wait for what it makes of it.
_interrupt_all() {
    interrupted=1
    kill -INT "${pids[@]}" 2>/dev/null || true
}

# run SAVE_DIR ARGS...: train; the user's --save-dir wins over SAVE_DIR.
#   DRY_RUN=1  only print what would be run
run() {
    local log_dir ranked=() pids=() pid rank rc=0 stamp interrupted=0
    log_dir=$(flag --save-dir "$1" "${@:2}")
    local command=("${trainer[@]}" --user-dir "$USER_DIR" --save-dir "$log_dir" --log-format json
        --log-file "$log_dir/train.log" ${worker_flags[@]+"${worker_flags[@]}"} "${@:2}")
    # One start each; an empty rank is left to fairseq.
    ranked=("${worker_ranks[@]-}")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        for rank in "${ranked[@]}"; do
            printf '%q ' "${command[@]}" ${rank:+--distributed-rank "$rank"}
            printf '\n'
        done
        return 0
    fi
    mkdir -p "$log_dir"
    ((${main_process:-1} == 0)) || _log_command "${command[@]}"
    stamp=$(mktemp)
    # They run in the background, so that this script can pass a signal on to them.
    trap '_stop_all; exit 143' TERM
    if [[ ${trainer[0]} == fairseq-train ]]; then
        trap '_stop_all; exit 130' INT
    else # in groups of their own, for those of the background ignore an interrupt, and others would get two
        trap _interrupt_all INT
        trap '_stop_all; exit 129' HUP
        set -m
    fi
    for rank in "${ranked[@]}"; do
        "${command[@]}" ${rank:+--distributed-rank "$rank"} &
        pids+=($!)
    done
    set +m
    for rank in "${ranked[@]}"; do
        wait -n || rc=$?
        ((rc == 0 && !interrupted)) || break
    done
    if ((interrupted)); then # all of them end by themselves
        rc=0
        for pid in "${pids[@]}"; do
            while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done # a further interrupt ends a wait too
            wait "$pid" || rc=$?
        done
    elif ((rc)); then # the others would wait for the one that is gone
        _stop_all
    fi
    trap - INT TERM HUP
    local fresh
    fresh=$(find "$log_dir" -maxdepth 1 -name '*.pt' -newer "$stamp" -print -quit)
    rm -f "$stamp"
    ((!interrupted || rc != 130)) || exit 130
    ((rc == 0)) ||
        die "${trainer[*]} ended with status $rc; the reason stands above, the command in $log_dir/command.log"
    if [[ ${trainer[0]} == fairseq-train && -z $fresh ]] && ((${main_process:-1})) && ! has --no-save "$@"; then
        die "${trainer[*]} ended without an error, but there is no new checkpoint in $log_dir" \
            "With --distributed-init-method and no GPU, fairseq starts no process at all."
    fi
}

# train_recipe SAVE_DIR SEQUENCES BATCH DATA FLAGS...: train on DATA, where it is not empty, with the flags in the array
# recipe and the user's FLAGS, or go on from the checkpoint_last.pt of a run that was stopped. SAVE_DIR, SEQUENCES and
# BATCH (as in plan_batch) hold where the environment has none of SAVE_DIR, SEQUENCES and BATCH_SIZE.
# shellcheck disable=SC2154  # recipe is of the script that sources this
train_recipe() {
    local save_dir=${SAVE_DIR:-$1} sequences=${SEQUENCES:-$2} batch=$3 data=$4 flags=("${recipe[@]}" "${@:5}")
    local last warmup most
    save_dir=$(flag --save-dir "$save_dir" "${flags[@]}")
    _check_precision "${flags[@]}"
    plan_workers "${flags[@]}"
    plan_batch "$sequences" "$batch" "${flags[@]}"
    last=$save_dir/checkpoint_last.pt
    # every process looks, so that all of them stop or none does
    if [[ -e $last && ${DRY_RUN:-0} != 1 && ${trainer[0]} == fairseq-train ]] &&
        ! has --restore-file "${flags[@]}" && ! has --user-dir "${flags[@]}"; then
        _check_progress "$last" "$data" "${flags[@]}"
    fi
    warmup=$(flag --warmup-updates 0 "${flags[@]}")
    most=$(flag --max-update 0 "${flags[@]}")
    if [[ $warmup$most =~ ^[0-9]+$ ]] && ((main_process && most > 0 && warmup >= most)); then
        echo "Warning: --warmup-updates $warmup of --max-update $most: the learning rate never reaches --lr." >&2
    fi
    run "$save_dir" ${data:+"$data"} "${recipe[@]}" "${batch_flags[@]}" "${@:5}"
}

# fairseq's bfloat16 is that of TPUs, without which it ends in an AttributeError.
_check_precision() {
    local name
    for name in --bf16 --memory-efficient-bf16 --tpu; do
        if has "$name" "$@" && ! python -c 'import torch_xla' 2>/dev/null; then
            die "fairseq-train $name is for TPUs, and torch_xla is not installed; on GPUs use --amp or --fp16"
        fi
    done
}

# Say where the run goes on, or end the script when there is nothing left to do: fairseq would do one more update.
_check_progress() {
    local last=$1 data progress updates epochs max_update max_epoch
    data=${2:-$(flag --bigram-stats "$(flag --corpus '' "${@:3}")" "${@:3}")} # what the task reads
    max_update=$(flag --max-update 0 "${@:3}")
    max_epoch=$(flag --max-epoch 0 "${@:3}")
    progress=$(python -m fairseq_transnorm.measure.describe "$last" ${data:+"$data"} --to-go-on \
        --only updates,epochs) ||
        die "cannot go on from $last" "remove it to start from the beginning, or give another SAVE_DIR"
    { read -r updates && read -r epochs; } <<<"$progress"
    if ((max_update > 0 && updates >= max_update)); then
        ((!main_process)) || echo "Nothing to do: $last has $updates updates already, --max-update is $max_update." >&2
        exit
    fi
    if ((max_epoch > 0 && epochs >= max_epoch)); then
        ((!main_process)) || echo "Nothing to do: $last has $epochs epochs already, --max-epoch is $max_epoch." >&2
        exit
    fi
    ((!main_process)) || echo "Going on from $last after $updates updates." >&2
}
