# submit RUN TOKEN HOW SUM ENVIRONMENT INPUT DOUBTFUL [COMMAND…]: make a run directory of the archive on standard input, and submit its job.
#
# RUN appears whole or not at all; whoever makes RUN/submitted.lock submits, once and for all.  So the same call may be made again,
# after a connection that broke, as often as one likes: it goes on where the last one ended.  TOKEN tells this run from another's.
# The first line of the answer: taken | failed WHY | written | unclear | answered STATUS, and then what the scheduler's command printed.
trap '' HUP INT PIPE TERM # who asked may be gone: what is begun is ended
run=$1 token=$2 how=$3 sum=$4 environment=$5 input=$6 doubtful=$7
shift 7
lock=$run/submitted.lock
temporary=''
trap '[ -z "$temporary" ] || rm -rf "$temporary"' EXIT

ours() { [ "$(cat "$run/submission" 2>/dev/null)" = "$token" ]; }

make() { # or say why not
  why=taken
  if [ -e "$run" ] || [ -L "$run" ]; then return 1; fi
  parent=${run%/*}
  why=$( (mkdir -p "$parent") 2>&1) || return
  temporary=$parent/.${run##*/}.$token.$$.tmp
  why=$( (umask 077 && mkdir "$temporary") 2>&1) || return
  why=$( (cat >"$temporary/archive.tar") 2>&1) || return
  case $how in
    sha256sum) is=$(sha256sum <"$temporary/archive.tar") ;;
    shasum) is=$(shasum -a 256 <"$temporary/archive.tar") ;;
    openssl) is=$(openssl dgst -sha256 -r <"$temporary/archive.tar") ;;
    cksum) is=$(cksum <"$temporary/archive.tar") ;;
  esac
  why="what arrived is not what was sent"
  case "$is " in "$sum "*) ;; *) return 1 ;; esac
  why=$( (cd "$temporary" && tar xf archive.tar && rm archive.tar && printf '%s\n' "$token" >submission) 2>&1) || return
  chmod "$(umask -S)" "$temporary" # the directory's own rights, now that it is whole
  why=$( (mv "$temporary" "$run") 2>&1) || return
  why=taken
  if [ -d "$run/${temporary##*/}" ]; then # RUN has come to be meanwhile, and mv went into it
    temporary=$run/${temporary##*/}
    return 1
  fi
  for temporary in "$parent/.${run##*/}.$token."*.tmp; do # of calls that were killed; one that is at it finds RUN made
    rm -rf "$temporary"
  done
  temporary=''
}

if ours; then
  cat >/dev/null
elif ! make && ! ours; then
  case $why in taken) echo taken ;; *) echo "failed $why" ;; esac
  exit 0
fi

if [ $# -eq 0 ]; then
  echo written
  exit 0
fi
if (mkdir "$lock") 2>/dev/null; then
  printf '%s %s\n' "$(uname -n)" $$ >"$lock/by"
  environment "$environment"
  find_program "$1"
  cd "$run" || exit
  out=$("$@" <"$input" 2>"$lock/err")
  status=$?
  if [ "$status" -ne 0 ] && [ -n "$doubtful" ] && grep -Eq "$doubtful" "$lock/err"; then # it may be queued all the same
    echo unclear
    cat "$lock/err" >&2
    exit 0
  fi
  printf '%s\n' "$out" >"$lock/out"
  printf '%s\n' "$status" >"$lock/status.new" && mv "$lock/status.new" "$lock/status"
  printf 'answered %s\n%s\n' "$status" "$out"
  cat "$lock/err" >&2
  if [ "$status" -ne 0 ]; then # nothing is queued, and no file is kept
    cd / && rm -rf "$run"
  fi
  exit 0
fi
if [ ! -d "$lock" ]; then
  echo "failed cannot write to $run"
  exit 0
fi

tries=60 # another call may be at it
while [ ! -s "$lock/status" ] && [ -d "$lock" ] && [ $tries -gt 0 ]; do
  by=$(cat "$lock/by" 2>/dev/null)
  tries=$((tries - 1))
  if [ "${by% *}" = "$(uname -n)" ] && ! kill -0 "${by#* }" 2>/dev/null; then
    tries=0 # it is dead
  else
    sleep 1
  fi
done
if [ -s "$lock/status" ]; then
  printf 'answered %s\n' "$(cat "$lock/status")"
  cat "$lock/out"
  cat "$lock/err" >&2
elif [ -d "$lock" ]; then
  echo unclear
  cat "$lock/err" >&2
else
  echo refused # by the other call, which has removed it
fi
exit 0
