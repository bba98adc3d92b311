#!/bin/sh
# Convert a list of models on a Ray cluster, as a job of its job server.
#
#     export RAY_ADDRESS=http://HEAD:8265
#     sh ray-job.sh MANIFEST OUTPUT [OPTION ...]
#
# OUTPUT: an absolute path that all nodes see; the same for models that are directories. The
# same command again converts what is not done.
#
# The logs are followed, and the exit status is 0 only if all went well. Ctrl-C ends that, not
# the job, which `ray job stop` does.
#
# To change: what the nodes lack (--runtime-env-json '{"pip": [...]}'); the core that the batch
# takes for itself. A cluster that wants a token: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN.
set -eu

[ $# -ge 2 ] || { echo 'usage: ray-job.sh MANIFEST OUTPUT [OPTION ...]' >&2; exit 2; }
manifest=$1 output=$2
shift 2
: "${RAY_ADDRESS:?the address of the job server, as http://HEAD:8265}"

# The working directory is sent to the cluster: the manifest, and nothing beside it.
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cp "$manifest" "$directory"

job=to-onnx-$(date +%Y%m%d-%H%M%S)-$$
ray job submit --submission-id "$job" --working-dir "$directory" --entrypoint-num-cpus 1 \
    -- modelexport-optimum batch "${manifest##*/}" -o "$output" "$@" --ray

# `submit` ends with 0 for a job that was stopped, too.
ray job status "$job" 2>&1 | grep -q succeeded
