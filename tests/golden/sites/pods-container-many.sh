#!/bin/bash
# small on pods: 256 ranks, 4 a node = tensor 1 x pipe 1 x data 256, 1024 sequences a step. Written by neox-hpc.

run=/scratch/runs/small

die() {
  echo "neox-hpc: $1" >&2
  exit 1
}

# Every start of this script is an attempt with a directory of its own; outcome is written however the script ends.
attempt=1
while [ -e "$run/logs/$attempt" ]; do attempt=$((attempt + 1)); done
export NEOX_HPC_ATTEMPT_DIR="$run/logs/$attempt"
mkdir "$NEOX_HPC_ATTEMPT_DIR" || die "cannot write to $run/logs"
status=1 # until the training's own is known
trap 'echo "exit_status=$status" >"$NEOX_HPC_ATTEMPT_DIR/outcome"' EXIT

export OMP_NUM_THREADS=16
export PYTHONNOUSERSITE=1
export PYTHONPATH=''
export APPTAINER_NO_EVAL=1
export PYTHONDONTWRITEBYTECODE=1 # code/ stays what the receipt's hash says
secrets=${HOME:-}/.config/neox-hpc/secrets.env # tokens are in no file of the run and in no argument
if [ -r "$secrets" ]; then
  set -a
  # shellcheck source=/dev/null
  . "$secrets"
  set +a
fi
set -u # only now: modules and other people's files do not all stand it

# The nodes of the job, each once: plain names, and the same with slots.
nodefile=$NEOX_HPC_ATTEMPT_DIR/nodefile
hostfile=$NEOX_HPC_ATTEMPT_DIR/hostfile
unique() {
  awk 'NF && !seen[$1]++ { print $1 }' >"$nodefile"
}
given=/job/hostfile
[ -r "$given" ] || die "there is no $given, which names this job's hosts"
wrong=$(awk -v ranks=4 '
  { sub(/#.*/, "") }
  !NF { next }
  NF != 2 || $1 !~ /^[A-Za-z0-9][A-Za-z0-9._-]*$/ || $2 !~ /^slots=[1-9][0-9]*$/ { print FNR ": write NAME slots=N"; next }
  seen[$1]++ { print FNR ": " $1 " stands there twice" }
  substr($2, 7) + 0 < ranks { print FNR ": " $1 " has fewer slots than the " ranks " ranks of a node" }
' "$given")
[ -z "$wrong" ] || die "$given:$wrong"
sed 's/#.*//' "$given" | awk 'NF { print $1 }' | head -n 64 | unique
sed 's/$/ slots=4/' "$nodefile" >"$hostfile"
nodes=$(grep -c . "$nodefile")
[ "$nodes" -eq 64 ] || die "the job has $nodes nodes and was planned for 64: see $nodefile"
read -r MASTER_ADDR <"$nodefile"

# Port: from the job's number, so that neighbours differ, or from a checksum of an id that is none; another one for each attempt;
# below the ephemeral range.
job=$$
[ -n "$job" ] || die "this is no job of local"
number=${job%%[!0-9]*}
[ -n "$number" ] || number=$(printf %s "$job" | cksum | cut -d " " -f 1)
MASTER_PORT=$((10000 + (number + 1009 * (attempt - 1)) % 20000))
export MASTER_ADDR MASTER_PORT

cd "$run/code" || die "there is no $run/code" # where the ranks find model/, and no other
echo "neox-hpc: attempt $attempt, $nodes x 4 ranks, rendezvous $MASTER_ADDR:$MASTER_PORT, $(date)"
# The shells of the nodes know nothing of this one: they run node.sh, which holds its variables.  Only its owner may read it.
quoted() { # a text as one word of a shell
  printf '%s\n' "$1" | LC_ALL=C sed "s/'/'\\\\''/g; 1s/^/'/; \$s/\$/'/"
}
devices='[0, 1, 2, 3]'
world_info=$(sed "s/.*/\"&\": $devices/" "$nodefile" | paste -s -d , - | sed 's/.*/{&}/')
world_info=$(printf '%s\n' "$world_info" | base64 | tr -d '\n' | tr '+/' '-_')
node_sh=$NEOX_HPC_ATTEMPT_DIR/node.sh
(
  umask 077
  {
    printf 'run=%s\n' "$(quoted "$run")"
    printf 'world_info=%s\n' "$world_info"
    for name in OMP_NUM_THREADS PYTHONNOUSERSITE PYTHONPATH APPTAINER_NO_EVAL MASTER_ADDR MASTER_PORT \
        NEOX_HPC_ATTEMPT_DIR PYTHONDONTWRITEBYTECODE; do
      found='' value=''
      eval "found=\${$name+yes} value=\${$name-}"
      [ -z "$found" ] || printf 'export %s=%s\n' "$name" "$(quoted "$value")"
    done
    cat <<'NODE'
secrets=${HOME:-}/.config/neox-hpc/secrets.env
if [ -r "$secrets" ]; then
  set -a
  . "$secrets"
  set +a
fi
cd "$run/code" || exit
what=$1
shift
if [ "$what" != ranks ]; then
  eval "$*"
  exit
fi
exec 3<&0 # it ends when pdsh does; the command is to end then, too
eval "$* 3<&- &"
command=$!
{
  cat <&3
  kill "$command"
} >/dev/null 2>&1 &
connection=$!
failed=$NEOX_HPC_ATTEMPT_DIR/failed-node # the first node that fails makes it, and the others end
{
  until [ -e "$failed" ]; do sleep 2; done
  kill "$command"
} >/dev/null 2>&1 3<&- &
others=$!
wait "$command"
status=$?
kill "$connection" "$others"
[ "$status" -eq 0 ] || mkdir "$failed" 2>/dev/null || status=0 # of the first one, not of those that end with it
exit "$status"
NODE
  } >"$node_sh"
) || die "cannot write $node_sh"
node_sh=$(quoted "$node_sh" | sed "s/%/%%/g") # pdsh reads %n and the like
# The launcher runs in the background because a shell that waits runs its traps at once. INT goes on as TERM: what a script
# starts in the background ignores INT. USR2 is what LSF sends at the time limit.
signal=''
told=''
launcher=''
trap 'signal=TERM told=", after a signal to stop" && [ -n "$launcher" ] && kill -s TERM "$launcher"' TERM INT USR2
trap 'signal=USR1 && [ -n "$launcher" ] && kill -s USR1 "$launcher"' USR1
pdsh -R ssh -S -b -f 64 -w "^$nodefile" sh "$node_sh" ranks apptainer exec --nv --bind /home/user/data --bind \
  "'\"\$run\"'" --bind "'\"\$run/code:\$run/code:ro\"'" --pwd "'\"\$run/code\"'" /images/neox.sif python3 -u \
  -m deepspeed.launcher.launch "'\"--world_info=\$world_info\"'" --master_addr "'\"\$MASTER_ADDR\"'" \
  --master_port "'\"\$MASTER_PORT\"'" --node_rank=%n --quiet --no_local_rank --module model.train \
  "'\"\$run/run.json\"'" &
launcher=$!
[ -z "$signal" ] || kill -s "$signal" "$launcher" # it came while the launcher had no number yet
signal=''
wait "$launcher"
status=$?
while [ -n "$signal" ]; do # the signal ended the wait, not the launcher
  signal=''
  wait "$launcher"
  status=$?
done

if [ "$status" -ne 0 ]; then
  first=$(find "$NEOX_HPC_ATTEMPT_DIR" -name 'rank*.error' -exec ls -tr {} + | head -n 1)
  if [ -n "$first" ]; then
    [ "$status" -le 128 ] || status=1 # a signal's status is that of the ranks which were ended because of this one
    echo "neox-hpc: the first error is in $first:"
    cat "$first"
  fi
  echo "neox-hpc: the training ended with exit status $status$told"
fi
exit "$status"
