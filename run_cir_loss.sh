#!/usr/bin/env bash
# Trains the Circle-loss strategies with LoRA adapters and compares them; ./run_cir_loss.sh --help says how.
exec bash "$(dirname "${BASH_SOURCE[0]}")/utils/run_strategies.sh" run_cir_loss default "$@"
