#!/usr/bin/env bash
# What plain rounding loses on the embedded base, and what training for the format wins back, with and without the base
# as teacher.
#   examples/qat/run.sh CORPUS OUT [FORMAT ...]
# CORPUS holds train.jsonl and valid.jsonl, made by examples/quickstart/make_corpus.py. OUT gets runs and table.txt.
# STEPS (200) and SEED (1) may be set. THIMBLE names the program.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
thimble=${THIMBLE:-$here/../../build/release/thimble}
corpus=$1
out=$2
shift 2
formats=("$@")
[ ${#formats[@]} -gt 0 ] || formats=(q4_0 int4 tq2_0)
base=$here/../quickstart/base
mkdir -p "$out"

# perplexity MODEL: over the validation text.
perplexity() {
  "$thimble" eval "$1" --data="$corpus/valid.jsonl" --context=512 --json | tr -d ' \n' |
    grep -o '"perplexity":[^,}]*' | head -n 1 | cut -d: -f2
}
# train NAME SETTING...: a run of the recipe into OUT/NAME.
train() {
  local name=$1 settings=()
  shift
  for setting in "$@"; do settings+=(--set "$setting"); done
  [ -e "$out/$name/summary.json" ] || "$thimble" train "$here/qat.yaml" --set data.train="$corpus/train.jsonl" \
    --set training.steps="${STEPS:-200}" --set training.seed="${SEED:-1}" --set output.folder="$out/$name" \
    "${settings[@]}" >"$out/$name.log"
}
row() { printf '%-34s %10.3f %8s\n' "$1" "$2" "$3" | tee -a "$out/table.txt"; }
# recovered ROUNDED TRAINED: the share of what rounding lost.
recovered() {
  awk -v base="$exact" -v rounded="$1" -v now="$2" 'BEGIN { printf "%.0f%%", 100 * (rounded - now) / (rounded - base) }'
}

: >"$out/table.txt"
exact=$(perplexity "$base")
row 'bf16' "$exact" ''
for format in "${formats[@]}"; do
  case $format in
    int* | fp8_*) export=$format file= ;;
    *) export=gguf file=/model.gguf ;;
  esac
  dtype=()
  [ "$export" != gguf ] || dtype=(--dtype="$format")
  [ -e "$out/$format" ] || "$thimble" export "$base" --format="$export" "${dtype[@]}" --max_kl=100 --min_agreement=0 \
    --out="$out/$format" >/dev/null
  rounded=$(perplexity "$out/$format$file")
  row "$format, rounded" "$rounded" ''
  train "$format-qat" qat.format="$format" output.export.format="$export"
  now=$(perplexity "$out/$format-qat/model$file")
  row "$format, trained for it" "$now" "$(recovered "$rounded" "$now")"
  train "$format-taught" qat.format="$format" output.export.format="$export" distillation.teacher="$base" \
    distillation.weight=0.5
  now=$(perplexity "$out/$format-taught/model$file")
  row "$format, with the base as teacher" "$now" "$(recovered "$rounded" "$now")"
done
# So that more training alone is not taken for recovery.
train more output.export.format=merged
row 'bf16, trained on as long' "$(perplexity "$out/more/model")" ''
