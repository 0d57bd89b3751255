#!/bin/bash
# A training on all GPUs of two machines, which goes on in its folder after preemption and at the end of the time limit:
#   sbatch scripts/slurm.sh run=runs/mine model=conv_tasnet batch_size=64
#SBATCH --job-name=separate
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1      # one torchrun, which starts a process for each GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120      # to this script, 2 minutes before the end
#SBATCH --requeue
#SBATCH --open-mode=append

go_on_later() {
    kill -TERM "$training"       # the step is finished and saved; torchrun allows 30 seconds
    wait "$training"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap go_on_later USR1

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --rdzv-backend=c10d \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 40000))" --max-restarts=3 \
    -m separate.cli.train resume=auto "$@" &
training=$!
wait "$training"
