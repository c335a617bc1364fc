#!/bin/bash
# 20B on frontier: 2752 ranks, 8 a node = tensor 2 x pipe 4 x data 344, 44032 sequences a step. Written by neox-hpc.
#SBATCH --job-name=20B
#SBATCH --account=lab42
#SBATCH --partition=batch
#SBATCH --nodes=344
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=7
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH -C nvme
#SBATCH --network=disable_rdzv_get
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

module load PrgEnv-gnu/8.7.0 || exit
module load cpe/26.03 || exit
module load miniforge3/23.11.0-0 || exit
module load rocm/7.1.1 || exit
module load rccl-net-plugin || exit
module load craype-accel-amd-gfx90a || exit
export OMP_NUM_THREADS=7
export TRITON_CACHE_DIR="/mnt/bb/${SLURM_JOB_USER:-}/triton"
export GLOO_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
export LD_LIBRARY_PATH="${CRAY_LD_LIBRARY_PATH:-}:${LD_LIBRARY_PATH:-}"
export NCCL_NET=OFI
export NCCL_CROSS_NIC=1
export NCCL_NET_GDR_LEVEL=PHB
export HSA_FORCE_FINE_GRAIN_PCIE=1
export FI_MR_CACHE_MONITOR=kdreg2
export FI_CXI_DISABLE_HOST_REGISTER=1
export FI_CXI_DEFAULT_CQ_SIZE=131072
export FI_CXI_DEFAULT_TX_SIZE=2048
export FI_CXI_RX_MATCH_MODE=hybrid
export FI_CXI_RDZV_EAGER_SIZE=0
export FI_CXI_RDZV_THRESHOLD=0
export FI_CXI_RDZV_GET_MIN=0
export MIOPEN_USER_DB_PATH="/tmp/miopen-${SLURM_JOB_ID:-}"
export MIOPEN_CUSTOM_CACHE_DIR="/tmp/miopen-${SLURM_JOB_ID:-}"
export all_proxy=socks://proxy.ccs.ornl.gov:3128/
export http_proxy=http://proxy.ccs.ornl.gov:3128/
export https_proxy=http://proxy.ccs.ornl.gov:3128/
export no_proxy='localhost,127.0.0.0/8,*.ccs.ornl.gov'
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
sed 's/$/ slots=8/' "$nodefile" >"$hostfile"
nodes=$(grep -c . "$nodefile")
[ "$nodes" -eq 344 ] || die "the job has $nodes nodes and was planned for 344: see $nodefile"
MASTER_ADDR=$(hostname -i) # this is the first node, where rank 0 runs
MASTER_ADDR=${MASTER_ADDR%% *}
case $MASTER_ADDR in "" | 127.* | ::1) die "hostname -i knows no address of this node: '$MASTER_ADDR'" ;; esac

# Port: from the job's number, so that neighbours differ, or from a checksum of an id that is none; another one for each attempt;
# below the ephemeral range.
job="${SLURM_JOB_ID:-}"
[ -n "$job" ] || die "this is no job of slurm"
number=${job%%[!0-9]*}
[ -n "$number" ] || number=$(printf %s "$job" | cksum | cut -d " " -f 1)
MASTER_PORT=$((10000 + (number + 1009 * (attempt - 1)) % 20000))
export MASTER_ADDR MASTER_PORT

cd "$run/code" || die "there is no $run/code" # where the ranks find model/, and no other
echo "neox-hpc: attempt $attempt, $nodes x 8 ranks, rendezvous $MASTER_ADDR:$MASTER_PORT, $(date)"
# The launcher runs in the background because a shell that waits runs its traps at once. INT goes on as TERM: what a script
# starts in the background ignores INT. USR2 is what LSF sends at the time limit.
signal=''
told=''
launcher=''
trap 'signal=TERM told=", after a signal to stop" && [ -n "$launcher" ] && kill -s TERM "$launcher"' TERM INT USR2
trap 'signal=USR1 && [ -n "$launcher" ] && kill -s USR1 "$launcher"' USR1
srun --nodes=344 --ntasks=2752 --ntasks-per-node=8 --cpus-per-task=7 \
  --cpu-bind=mask_cpu:0xfe000000000000,0xfe00000000000000,0xfe0000,0xfe000000,0xfe,0xfe00,0xfe00000000,0xfe0000000000 \
  --distribution=block --kill-on-bad-exit=1 --label /sw/env/bin/python -u -m model.train "$run/run.json" &
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
