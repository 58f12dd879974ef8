#!/usr/bin/env bash
# Trains the Circle-loss strategies and compares them in one table: run_cir_loss.sh and run_cir_full.sh.
# Arguments: the calling script's name without .sh, the `lora` option that it stands for, the user's arguments.
# With adapters, lora=dora or another option chooses their form.
set -euo pipefail

readonly SCRIPT=$1
lora=$2
shift 2
readonly NAMES=(baseline in_modal nc_itc pure hybrid curriculum)
readonly LOSSES=(baseline in_modal_circle nc_itc pure_circle hybrid_circle curriculum_circle)
readonly OF_ALL=5 # those of the first paper; the curriculum of the second has to be named
readonly ABOUT=(
    "N-ITC, no Circle loss"
    "N-ITC + Circle loss within each modality"
    "N-ITC with the weights of Circle loss inside"
    "Circle loss across modalities instead of N-ITC"
    "N-ITC + Circle loss across modalities"
    "as hybrid, the Circle loss from epoch 6 on, in full from epoch 20 on"
)

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1" >&2
    exit 2
}

menu() {
    local i
    for i in "${!NAMES[@]}"; do
        printf '  %d  %-10s  %s\n' "$((i + 1))" "${NAMES[i]}" "${ABOUT[i]}"
    done
    printf '     %-10s  %s\n' all "the first five, one after another"
}

usage() {
    local how="with LoRA adapters"
    [[ $lora != none ]] || how="with all its weights"
    cat <<EOF
Usage: ./$SCRIPT.sh [STRATEGY] [--demo] [--dry-run] [OVERRIDE...]

Trains mSigLIP on VN3K $how, under one Circle-loss strategy or five, and compares them in one table.
On a terminal it asks for the strategy when none is given:

$(menu)

  --demo      the tiny backbone on the embedded data (-cn demo) instead of mSigLIP on VN3K; so it is by itself
              where neither m_siglip_checkpoints/ nor VN3K/ is
  --dry-run   prints the commands, one per line, and runs nothing
  OVERRIDE    any Hydra override, for every strategy: seed=1 trainer.max_epochs=5 dataset=vn3k_en

The runs go to outputs/${SCRIPT}_<time>/, or to FOLDER with output_dir=FOLDER; a killed run continues with its
strategy, the same output_dir and ckpt_path=last. A strategy that fails does not stop the others.
Exit status: 0 all trained, 1 some failed, 2 wrong arguments or something missing, 130 interrupted.
EOF
}

# Sets `chosen` to the positions in NAMES that $1 stands for; false for an unknown one.
choose() {
    local i
    chosen=()
    for i in "${!NAMES[@]}"; do
        if [[ $1 == "${NAMES[i]}" || $1 == "$((i + 1))" ]] || { [[ $1 == all ]] && ((i < OF_ALL)); }; then
            chosen+=("$i")
        fi
    done
    ((${#chosen[@]} > 0))
}

# Whether an override begins with one of the given prefixes.
overridden() {
    local override prefix
    for override in "${overrides[@]}"; do
        for prefix in "$@"; do
            [[ $override != "$prefix"* ]] || return 0
        done
    done
    return 1
}

# What of the real data and checkpoint is neither here nor named by an override.
missing_here() {
    if ! overridden backbone= backbone.folder= dataset_root_dir= experiment=; then
        [[ -f m_siglip_checkpoints/config.json ]] || echo m_siglip_checkpoints/
    fi
    if ! overridden dataset= dataset_root_dir= experiment=; then
        [[ -d VN3K ]] || echo VN3K/
    fi
}

choice="" config=cir_msiglip dry_run=false
folder=outputs/${SCRIPT}_$(date +%Y-%m-%d_%H-%M-%S)
overrides=()
for argument in "$@"; do
    case $argument in
        -h | --help) usage && exit 0 ;;
        --demo) config=demo ;;
        --dry-run) dry_run=true ;;
        -*) fail "there is no option $argument; see ./$SCRIPT.sh --help." ;;
        lora=*)
            [[ $lora != none && $argument != lora=none ]] ||
                fail "$argument: run_cir_loss.sh trains adapters (lora=default, lora=dora, ...), run_cir_full.sh all weights."
            lora=${argument#*=}
            ;;
        loss=*) fail "$argument is what this script sets; to choose it run \`uv run trainer.py $argument\`." ;;
        output_dir=*) folder=${argument#*=} ;;
        *=* | '~'*) overrides+=("$argument") ;;
        *)
            [[ -z $choice ]] || fail "two strategies, $choice and $argument: name one, or all."
            choice=$argument
            ;;
    esac
done

readonly ASK="baseline, in_modal, nc_itc, pure, hybrid, curriculum, all or 1-6"
if [[ -n $choice ]]; then
    choose "$choice" || fail "there is no strategy $choice: name one of $ASK."
elif [[ -t 0 ]]; then
    menu >&2
    until choose "$choice"; do
        read -r -p "Strategy ($ASK): " choice || fail "no strategy was chosen."
    done
else
    fail "no strategy given: name one of $ASK (see ./$SCRIPT.sh --help)."
fi

if [[ $config != demo ]]; then
    mapfile -t missing < <(missing_here)
    if ((${#missing[@]} == 2)); then
        echo "neither ${missing[0]} nor ${missing[1]} is here (./setup.sh brings them): the tiny backbone learns from the\
 embedded data instead, as with --demo." >&2
        config=demo
    elif ((${#missing[@]} == 1)) && ! $dry_run; then
        fail "${missing[0]} not found here: run ./setup.sh, or add --demo to train the tiny backbone on the embedded data."
    fi
fi
if ! $dry_run; then
    command -v uv >/dev/null || fail "uv is not installed; run ./setup.sh."
fi

trap 'echo "Interrupted; no further strategy is trained." >&2; exit 130' INT
failed=()
for i in "${chosen[@]}"; do
    run=(uv run trainer.py -cn "$config" "lora=$lora" "loss=${LOSSES[i]}" "output_dir=$folder" "${overrides[@]}")
    if $dry_run; then
        printf -v line '%q ' "${run[@]}"
        echo "${line% }"
        continue
    fi
    echo "== $SCRIPT: ${NAMES[i]} (${ABOUT[i]})" >&2
    status=0
    "${run[@]}" || status=$?
    ((status == 0)) || failed+=("${NAMES[i]} (status $status)")
done
$dry_run && exit 0

status=0
if ((${#failed[@]} < ${#chosen[@]})); then
    uv run python -m utils.report "$folder" || status=1
fi
if ((${#failed[@]} > 0)); then
    printf -v line '%s, ' "${failed[@]}"
    echo "error: failed and missing from the table: ${line%, }." >&2
    status=1
fi
exit $status
