#!/usr/bin/env bash
# The quickstart: evaluate the embedded base, train a QLoRA adapter, merge, export, evaluate and ask the merged model.
# Called by ./dev quickstart; THIMBLE names the program.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
thimble=${THIMBLE:-$root/build/release/thimble}
start=$SECONDS

# A new folder each time: an earlier run is never overwritten.
run=$root/runs/quickstart
for ((n = 2; ; n++)); do
  [ -e "$run" ] || break
  run=$root/runs/quickstart-$n
done
mkdir -p "$root/runs"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step() { printf '\n== %s\n' "$*"; }
# value FILE KEY: a number from a JSON file that holds the key once.
value() { tr -d ' \n' <"$1" | grep -o "\"$2\":[^,}]*" | head -n 1 | cut -d: -f2; }
digits() { awk -v number="$1" 'BEGIN { printf "%.4f", number }'; }
percent() { awk -v share="$1" 'BEGIN { printf "%.1f%%", 100 * share }'; }
mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'; }

step '1 of 4: the base answers held-out questions (their form is new to it)'
"$thimble" eval "$here/base" --data="$here/heldout.jsonl" --exact_match --json >"$work/before.json"
echo "exact match $(percent "$(value "$work/before.json" exact_match)")"

step '2 of 4: plan, train, merge, export'
"$thimble" train "$here/qlora.yaml" --set output.folder="$run"

step '3 of 4: the merged model answers the same questions'
"$thimble" eval "$run/model" --data="$here/heldout.jsonl" --exact_match --json >"$run/eval.json"
echo "exact match $(percent "$(value "$run/eval.json" exact_match)")"

step '4 of 4: a few answers'
questions=()
while IFS= read -r line; do questions+=("$line"); done < <(
  awk 'NR % 67 == 5' "$here/heldout.jsonl" | sed -E 's/.*"role": "user", "content": "([^"]*)".*/\1/' | head -n 4)
for question in "${questions[@]}"; do
  text=$(printf '%b' "$question")
  printf '%s\n  -> %s\n\n' "$text" "$("$thimble" generate "$run/model" --prompt="$text" --max_new_tokens=12 2>/dev/null)"
done

summary=$run/summary.json
device=$(tr -d ' \n' <"$summary" | grep -o '"device":{[^}]*}' | head -n 1)
process=$(tr -d ' \n' <"$summary" | grep -o '"process":{[^}]*}' | head -n 1)
echo "$device" >"$work/device.json"
echo "$process" >"$work/process.json"
cat <<SUMMARY

== Summary after $((SECONDS - start)) s
  held-out loss     $(digits "$(value "$summary" eval_loss_before)") before, $(digits "$(value "$summary" eval_loss_after)") after
  exact match       $(percent "$(value "$work/before.json" exact_match)") before, $(percent "$(value "$run/eval.json" exact_match)") after
  device memory     planned $(mib "$(value "$work/device.json" planned_bytes)"), measured $(mib "$(value "$work/device.json" measured_bytes)")
  process memory    planned $(mib "$(value "$work/process.json" planned_bytes)"), peak $(mib "$(value "$work/process.json" measured_bytes)")

  the run           $run (recipe.yaml, metrics.jsonl, checkpoints)
  curves            $run/report.html
  merged model      $run/model (a Hugging Face folder)

What next:
  $thimble generate $run/model --prompt='One day Ann was at the beach. What is the place of the story?'
  $thimble data $here/qlora.yaml          what the model was shown, targets marked
  $thimble plan $here/qlora.yaml          every byte of the plan
  $thimble train recipes/qlora.yaml --set model.path=YOUR_MODEL \\
      --set data.train=YOUR_ROWS.jsonl --set output.folder=runs/mine
SUMMARY
