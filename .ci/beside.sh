# Steps that run side by side, some at a time. `run` sources this file, and so do its tests.
#
#   beside NAME FUNCTION     put a step on the list
#   run_steps 2              run all of the list, two at a time, in the order of the list
#   end_steps                end what still runs, for a trap
#
# What a step prints goes to a file, which is shown when the step has ended. If one fails, the others
# are ended and run_steps fails. $work is a folder for the files.

step_names=() step_functions=() step_pids=()

beside() {
  step_names+=("$1")
  step_functions+=("$2")
}

run_steps() {
  local most=$1 count=${#step_names[@]} next=0 running=() still k code spoken=$SECONDS
  local -a begun=()
  while ((next < count || ${#running[@]})); do
    while ((next < count && ${#running[@]} < most)); do
      start_step "$next"
      begun[next]=$SECONDS
      running+=("$next")
      next=$((next + 1))
    done
    sleep 0.2
    still=()
    for k in "${running[@]}"; do
      if step_runs "$k"; then
        still+=("$k")
        continue
      fi
      step_pids[k]=
      code=$(cat "$work/step.$k.code" 2>/dev/null || echo 137) # none: it was killed
      show_step "$k" "$((SECONDS - begun[k]))" "$code"
      if ((code)); then
        end_steps
        return 1
      fi
      spoken=$SECONDS
    done
    running=(${still[@]+"${still[@]}"})
    if ((SECONDS - spoken >= 120 && ${#running[@]})); then # a silent log looks like one that hangs
      for k in "${running[@]}"; do printf '... %s (%s)\n' "${step_names[k]}" "$(date +%T)"; done
      spoken=$SECONDS
    fi
  done
  step_names=() step_functions=() step_pids=()
}

start_step() {
  local code=$work/step.$1.code
  rm -f "$code"
  printf '\n... begins: %s (%s)\n' "${step_names[$1]}" "$(date +%T)"
  # with job control a step has a process group of its own, so that all of it can be ended
  set -m
  (
    set +m
    trap 'echo $? >"$code.part"; mv "$code.part" "$code"' EXIT
    "${step_functions[$1]}"
  ) </dev/null >"$work/step.$1.log" 2>&1 &
  set +m
  step_pids[$1]=$!
}

step_runs() { [[ ! -e $work/step.$1.code ]] && kill -0 "${step_pids[$1]}" 2>/dev/null; }

show_step() { # number, seconds, exit code
  local how="took $(($2 / 60)) min $(($2 % 60)) s"
  (($3)) && how="FAILED with exit code $3, $how"
  printf '\n=== %s (%s, %s)\n' "${step_names[$1]}" "$how" "$(date +%T)"
  cat "$work/step.$1.log"
}

end_steps() {
  local k pid tries
  for k in "${!step_pids[@]}"; do
    pid=${step_pids[k]}
    [[ $pid ]] && kill -0 -- "-$pid" 2>/dev/null || continue
    printf '\n=== %s (ended before it was done; its last lines)\n' "${step_names[k]}"
    tail -n 20 "$work/step.$k.log"
    kill -TERM -- "-$pid" 2>/dev/null || true
    for tries in {1..40}; do # 8 seconds to end by itself
      kill -0 -- "-$pid" 2>/dev/null || break
      sleep 0.2
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
    step_pids[k]=
  done
}
