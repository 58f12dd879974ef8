#!/usr/bin/env bash
# Fine-tunes all weights under the Circle-loss strategies and compares them; ./run_cir_full.sh --help says how.
exec bash "$(dirname "${BASH_SOURCE[0]}")/utils/run_strategies.sh" run_cir_full none "$@"
