#!/bin/bash
# small on jupiter: 256 ranks, 4 a node = tensor 1 x pipe 1 x data 256, 1024 sequences a step. Written by neox-hpc.
#SBATCH --job-name=small
#SBATCH --account=lab42
#SBATCH --nodes=64
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=72
#SBATCH --gres=gpu:4
#SBATCH --output=/scratch/runs/small/logs/job.out
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --export=NONE

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

# --export=NONE keeps the submitting shell out of the job; without this, srun would keep this script's PATH out of its tasks.
export SLURM_EXPORT_ENV=ALL

export OMP_NUM_THREADS=72
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
scontrol show hostnames "$SLURM_JOB_NODELIST" | unique
sed 's/$/ slots=4/' "$nodefile" >"$hostfile"
nodes=$(grep -c . "$nodefile")
[ "$nodes" -eq 64 ] || die "the job has $nodes nodes and was planned for 64: see $nodefile"
read -r MASTER_ADDR <"$nodefile"

# Port: from the job's number, so that neighbours differ, or from a checksum of an id that is none; another one for each attempt;
# below the ephemeral range.
job="${SLURM_JOB_ID:-}"
[ -n "$job" ] || die "this is no job of slurm"
number=${job%%[!0-9]*}
[ -n "$number" ] || number=$(printf %s "$job" | cksum | cut -d " " -f 1)
MASTER_PORT=$((10000 + (number + 1009 * (attempt - 1)) % 20000))
export MASTER_ADDR MASTER_PORT

cd "$run/code" || die "there is no $run/code" # where the ranks find model/, and no other
echo "neox-hpc: attempt $attempt, $nodes x 4 ranks, rendezvous $MASTER_ADDR:$MASTER_PORT, $(date)"
# The launcher runs in the background because a shell that waits runs its traps at once. INT goes on as TERM: what a script
# starts in the background ignores INT. USR2 is what LSF sends at the time limit.
signal=''
told=''
launcher=''
trap 'signal=TERM told=", after a signal to stop" && [ -n "$launcher" ] && kill -s TERM "$launcher"' TERM INT USR2
trap 'signal=USR1 && [ -n "$launcher" ] && kill -s USR1 "$launcher"' USR1
srun --nodes=64 --ntasks=256 --ntasks-per-node=4 --cpus-per-task=72 \
  --cpu-bind=mask_cpu:0xffffffffffffffffff,0xffffffffffffffffff000000000000000000,0xffffffffffffffffff000000000000000000000000000000000000,0xffffffffffffffffff000000000000000000000000000000000000000000000000000000 \
  --distribution=block --kill-on-bad-exit=1 --label apptainer exec --nv --bind /home/user/data --bind "$run" \
  --bind "$run/code:$run/code:ro" --pwd "$run/code" /images/neox.sif python3 -u -m model.train "$run/run.json" &
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
