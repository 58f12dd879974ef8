#!/usr/bin/env bash
# Installs everything; see --help. Safe to run again: what is there already is kept.
set -euo pipefail

usage() {
    cat <<HELP
Usage: ./setup.sh [options]

Installs uv (if absent) and the environment, prepares a backbone and, if asked, a dataset.

  --checkpoint NAME   may be repeated; m_siglip by default. One of
                      $(names backbone)
  --no-checkpoint     prepare none
  --dataset NAME      one of
                      $(names dataset)
  --from SOURCE       where its archive is: an http(s) address, gdrive:FILE_ID, or a zip or tar file
  --sha256 HEX        what the archive has to hash to
  --dry-run           print the commands instead of running them
  --help              print this

A dataset is unpacked into its folder here and then examined by the dataset doctor. With --dataset but without
--from, the folder that is there is examined. The embedded dataset needs none of this: uv run trainer.py
HELP
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

value() { # option, number of arguments left: an option needs a value after it
    [[ $2 -ge 2 ]] || fail "$1 needs a value; see ./setup.sh --help"
}

names() { # group of config/
    local file name all=''
    for file in "$config/$1"/[!_]*.yaml; do
        name=${file##*/}
        all+="${all:+, }${name%.yaml}"
    done
    echo "$all"
}

known() { # group of config/, option, name
    [[ $3 != _* && $3 != */* && -f $config/$1/$3.yaml ]] || fail "$2: there is no ${2#--} '$3'; expected one of $(names "$1")"
}

run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    [[ -n $dry_run ]] || "$@"
}

install_uv() {
    if command -v uv >/dev/null; then return; fi
    export PATH="$HOME/.local/bin:$PATH"
    if command -v uv >/dev/null; then return; fi
    echo "+ install uv (astral.sh/uv/install.sh, or else python3 -m pip install uv)"
    [[ -z $dry_run ]] || return 0
    if command -v curl >/dev/null && script=$(curl -LsSf https://astral.sh/uv/install.sh); then
        sh -c "$script" && command -v uv >/dev/null && return
    fi
    python3 -m pip install uv || fail "uv cannot be installed; install it by hand (docs.astral.sh/uv), then run this again"
    command -v uv >/dev/null || fail "pip has put uv outside PATH; extend PATH by the folder that pip names above, then run this again"
}

config=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/config
checkpoints=() no_checkpoint='' dataset='' source='' sha256='' dry_run=''
while [[ $# -gt 0 ]]; do
    case $1 in
        --checkpoint) value "$1" $#; checkpoints+=("$2"); shift ;;
        --no-checkpoint) no_checkpoint=1 ;;
        --dataset) value "$1" $#; dataset=$2; shift ;;
        --from) value "$1" $#; source=$2; shift ;;
        --sha256) value "$1" $#; sha256=$2; shift ;;
        --dry-run) dry_run=1 ;;
        -h | --help) usage; exit 0 ;;
        *) fail "there is no option $1; see ./setup.sh --help" ;;
    esac
    shift
done

for name in ${checkpoints[@]+"${checkpoints[@]}"}; do known backbone --checkpoint "$name"; done
[[ -z $no_checkpoint ]] || [[ ${#checkpoints[@]} -eq 0 ]] || fail "--checkpoint and --no-checkpoint exclude each other"
[[ -n $dataset ]] || [[ -z $source$sha256 ]] || fail "--from and --sha256 need --dataset NAME"
[[ -n $source ]] || [[ -z $sha256 ]] || fail "--sha256 needs --from SOURCE"
if [[ -n $dataset ]]; then known dataset --dataset "$dataset"; fi
extra=()
case $source in
    '' | http://* | https://*) ;;
    gdrive:*) extra=(--extra drive) ;;
    *)
        [[ -f $source ]] || fail "--from: there is no file '$source'; expected an http(s) address, gdrive:FILE_ID, or an archive"
        source=$(cd -- "$(dirname -- "$source")" && pwd)/$(basename -- "$source")
        ;;
esac

cd -- "${config%/*}"
install_uv
run uv sync
if [[ -z $no_checkpoint ]]; then run uv run prepare_checkpoints.py ${checkpoints[@]+"${checkpoints[@]}"}; fi
if [[ -n $source ]]; then
    run uv run ${extra[@]+"${extra[@]}"} python -m utils.download "$dataset" --from "$source" ${sha256:+--sha256 "$sha256"}
fi
if [[ -n $dataset ]]; then run uv run python -m data.doctor "$dataset"; fi
