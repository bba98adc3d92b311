#!/bin/sh
# Convert the checkpoints of a training run, or a list of models. Instead of the loop
#
#     for model in runs/*/; do optimum-cli export onnx --model "$model" "onnx/$model"; done
#
# it imports PyTorch once and goes on after a failure; run again, it does what is not done.
#
#     sh batch.sh MODELS OUTPUT [OPTION ...]
#
# MODELS: a directory with one directory for each model, or a file with one model a line.
# OPTION: of `modelexport-optimum batch`, for all of them, as --task feature-extraction.
# To change: what is done about those that failed.
set -eu

[ $# -ge 2 ] || { echo 'usage: batch.sh MODELS OUTPUT [OPTION ...]' >&2; exit 2; }
models=$1 output=$2 manifest=$1
shift 2

if [ -d "$models" ]; then
    mkdir -p "$output"
    manifest=$output/models.txt
    for file in "$models"/*/config.json "$models"/*/model_index.json; do
        if [ -e "$file" ]; then printf '"%s"\n' "${file%/*}"; fi
    done >"$manifest"
fi

rm -f "$output/failed.tsv"
status=0
modelexport-optimum batch "$manifest" -o "$output" "$@" || status=$?
if [ "$status" = 1 ] || [ "$status" = 3 ]; then # not converted, or a check failed
    python3 - "$output/results.jsonl" >"$output/failed.tsv" <<'END'
import json, sys
for result in map(json.loads, open(sys.argv[1])):
    if result["status"] != "ok":
        print(result["model"], result["status"], result["error"], sep="\t")
END
    echo "To look at: $output/failed.tsv" >&2
fi
exit "$status"
