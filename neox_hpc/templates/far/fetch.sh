# fetch RUN MOST FILE:FROM…: what a run has written since, MOST bytes a file.  FROM: a byte; E-N: from byte E on, of the last N bytes;
# ~N: the last N lines.  Answer: a line of facts, then for each file a line `MTIME FROM LENGTH NAME` and so many bytes.
run=$1 most=$2
shift 2
if [ ! -f "$run/plan.json" ]; then
  echo gone
  exit 0
fi
cd "$run" || exit
receipt=no
[ ! -s receipt.json ] || receipt=yes
answer=''
[ ! -s submitted.lock/status ] || answer="$(cat submitted.lock/status)"
echo "here $(date +%s) $receipt $answer"

emit() { # NAME FROM
  [ -f "$1" ] || return
  size=$(size_of "$1")
  from=$2
  case $2 in
    *-*)
      from=${2%-*}
      [ "${from:-0}" -ge $((size - ${2#*-})) ] || from=$((size - ${2#*-}))
      [ "${from:-0}" -ge 0 ] || from=0
      from=${from:-0}
      ;;
    \~*) from=$((size - $(tail -n "${2#\~}" "$1" | head -c "$size" | wc -c))) ;;
  esac
  [ "$from" -le "$size" ] || from=0 # it was written anew
  length=$((size - from))
  [ "$length" -le "$most" ] || length=$most
  printf '%s %s %s %s\n' "$(time_of "$1")" "$from" "$length" "$1"
  tail -c +"$((from + 1))" "$1" | head -c "$length"
}

last=''
for attempt in logs/*/; do
  attempt=${attempt%/}
  number=${attempt#logs/}
  case $number in "" | *[!0-9]*) continue ;; esac
  [ "$number" -le "${last:-0}" ] || last=$number
  emit "$attempt/outcome" 0
done
if [ -n "$last" ]; then # the earliest report is the cause
  emit "logs/$last/hostfile" 0
  first=$(find "logs/$last" -name 'rank*.error' -size +0c -exec ls -tr {} + 2>/dev/null | head -n 1)
  [ -z "$first" ] || emit "$first" 0
fi
emit cancelled.json 0
[ "$receipt" = yes ] || { emit submitted.lock/out 0; emit submitted.lock/err 0; }
for wanted; do
  emit "${wanted%:*}" "${wanted##*:}"
done
exit 0
