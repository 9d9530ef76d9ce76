#!/usr/bin/env bash
# An index on every host of a Cloud TPU pod: configs/launch/tpu_pod.sh NAME ZONE index.yaml /mnt/shared/my.index
# The hosts find each other by the pod's own metadata. Run it again after a preemption: it goes on where it stopped.
set -euo pipefail
name="${1:?the name of the TPU}"
zone="${2:?its zone}"
config="${3:?a YAML config of kind index, on every host}"
out="${4:?a folder that every host can write to (a mounted bucket or file share)}"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="uimjax index build $(printf '%q' "$config") --out $(printf '%q' "$out") --devices 4 --limit 900"
