#!/usr/bin/env bash
# All that is measured on a GPU, phase by phase, into a folder:
#
#     bash bench/gpu.sh OUT [tests] [budgets] [execute] [tight] [frontier] [beyond] [copies]
#                           [plots] [explain] [truth] [ddp] [peer] [turns]
#
# ddp and peer want two GPUs. Several phases can run at once, each on a GPU of its own, by
# CUDA_VISIBLE_DEVICES; MODELS="resnet50:128 gpt:8" has execute, tight and frontier of some alone.
# On an H200: tests 3 minutes, budgets 2, execute 10, frontier 8, beyond 5, copies 1, plots 1,
# explain 2, truth 8, ddp 1, peer 5, turns 6. What is written is what bench/results/ holds, and what
# the tables are made of.
set -u
out=$1; shift
mkdir -p "$out"
cd "$(dirname "$0")/.."
cheap=conv/matmul/attention/embedding/add/fork/concat/loss  # what is kept; the rest runs again
now="liveness+offload:release=immediate"
again="liveness+recompute:strategy=speed"
hidden="liveness+offload:most=4GB,lookahead=200"
ends=pool/add/loss  # what a block ends with
all=conv/matmul/attention/norm/activation/dropout/add/elementwise/pool/embedding/concat/loss
peer="liveness+offload:tier=peer,kinds=$all"
export PYTHONUNBUFFERED=1

tests() {
  CUBLAS_WORKSPACE_CONFIG=:4096:8 python3 -m pytest -q -m gpu -n 10 -p no:benchmark \
    tests/test_executor_gpu.py > "$out/tests.txt" 2>&1
  tail -n 1 "$out/tests.txt"
}

budgets() { python3 bench/budgets.py 6 > "$out/budgets.jsonl"; }

run() {  # MODEL BATCH POLICY...
  case " ${MODELS:-$1:$2} " in
    *" $1:$2 "*) python3 bench/execute.py "$@" >> "$out/execute.jsonl" ;;
  esac
}

execute() {
  run small_cnn 4 liveness baseline "$now"
  run resnet50 128 liveness baseline "$now" liveness+offload liveness+cache@0.5 "$again"
  run gpt 8 liveness baseline "$now" liveness+offload liveness+offload:release=pressure@0.8 \
    liveness+cache@0.5 "$hidden" "liveness+recompute:kinds=$cheap" "$hidden+recompute:kinds=$cheap"
  run bert 32 liveness baseline "$now" liveness+offload "liveness+recompute:kinds=$cheap"
  run unet 8 liveness baseline "$now" liveness+offload "$again"
  run densenet121 64 liveness baseline "$now" liveness+offload \
    liveness+offload:release=pressure@0.7 liveness+cache@0.5
  run resnet314 16 liveness "$now" "$again"
  tight
}

tight() {  # default segments would take much more than is asked for
  export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
  run resnet50 128 liveness+offload:release=pressure@0.7
  run unet 8 liveness+offload:release=pressure@0.8 liveness+cache@0.6 liveness+cache@0.5
  run bert 32 liveness+offload:release=pressure@0.9 liveness+cache@0.7
  unset PYTORCH_CUDA_ALLOC_CONF
}

frontier() {
  export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
  for each in ${MODELS:-resnet50:128 resnet314:16 bert:32 unet:8 gpt:8}; do
    python3 bench/frontier.py --seconds 6 "${each%:*}" "${each#*:}" >> "$out/frontier.jsonl"
  done
  unset PYTORCH_CUDA_ALLOC_CONF
}

beyond() {
  python3 bench/beyond.py run resnet50 512 >> "$out/beyond.jsonl"
  python3 bench/beyond.py run resnet50 680 >> "$out/beyond.jsonl"
  # The last of forward may stay until backward: only its end has all gradients on the device.
  python3 bench/beyond.py run resnet 3902 \
    "liveness+offload:kinds=$ends,least=1MiB,most=14GB+recompute:kinds=$ends,strategy=speed" \
    >> "$out/beyond.jsonl"
}

ddp() {
  python3 -m pytest -q -m gpu tests/test_executor_ddp.py > "$out/ddp.txt" 2>&1
  tail -n 1 "$out/ddp.txt"
}

peer() {  # with AdamW, as everywhere, and without the states, which no schedule can send away
  for each in gpt gpt_sgd; do
    python3 bench/execute.py "$each" 8 liveness "$peer,release=immediate" \
      "$peer,release=4,lookahead=3" "$peer,release=6,lookahead=8" >> "$out/peer.jsonl"
  done
  python3 bench/turns.py gpt 8 "$peer,release=4,lookahead=3" "$peer,release=6,lookahead=8" \
    >> "$out/turns.jsonl"
}

turns() {  # what waits for its host, beside plain steps of the same seconds
  first="$again,kinds=norm/pool/matmul/elementwise/loss,least=5MB"
  python3 bench/turns.py resnet314 16 liveness "$first,most=1GB" "$first,most=1150MB" \
    "$first,most=1300MB" "$first,most=1500MB" "$first,most=1500MB!" "$first,most=2GB" "$again" \
    >> "$out/turns.jsonl"
  python3 bench/turns.py small_cnn 4 liveness baseline >> "$out/turns.jsonl"
  python3 bench/turns.py densenet121 64 liveness >> "$out/turns.jsonl"
}

copies() { python3 bench/copies.py > "$out/copies.jsonl"; }

plots() {
  python3 -m superneurons run superneurons.zoo:resnet50:batch=128 --policy superneurons \
    --budget 6GiB --times resnet50-b128 --plot "$out/resnet50.png" --log "$out/runs.jsonl"
  python3 -m superneurons run superneurons.zoo:gpt:batch=8 --policy "$hidden" \
    --times gpt-b8 --plot "$out/gpt.png" --log "$out/runs.jsonl"
}

explain() {  # bound by the GPU, by the link, by what runs again, and by its host
  clock() {
    python3 -m superneurons run "superneurons.zoo:$1" --policy "$2" --times "$3" --explain \
      --log "$out/explained.jsonl" >> "$out/explained.txt" 2>&1
  }
  clock resnet50:batch=128 liveness resnet50-b128
  clock resnet50:batch=128 "$now" resnet50-b128
  clock resnet50:batch=128 "$again" resnet50-b128
  clock densenet121:batch=64 liveness densenet121-b64
  clock small_cnn:batch=4 liveness small-cnn-b4
  # and held to half its peak
  PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True python3 -m superneurons run \
    superneurons.zoo:unet:batch=8 --policy liveness+cache --budget 6220181187 --times unet-b8 \
    --explain --log "$out/held.jsonl" >> "$out/explained.txt" 2>&1
}

truth() { python3 bench/truth.py "$out/recordings" > "$out/truth.jsonl"; }

for phase in "${@:-tests budgets execute frontier beyond copies plots explain}"; do
  for each in $phase; do
    echo "== $each, $(date +%T)"
    "$each"
  done
done
