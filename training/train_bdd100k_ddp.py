r"""Train one BDD100K expert: detection, drivable area or semantic segmentation.

One device:      python3 training/train_bdd100k_ddp.py --task detection --data_root /data/bdd100k
Many GPUs:       torchrun --nproc_per_node=4 training/train_bdd100k_ddp.py --task detection
Several nodes:   torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:PORT \
                     training/train_bdd100k_ddp.py
CPU, a quick look: python3 training/train_bdd100k_ddp.py --profile tiny --limit 64 --max_steps 20

Best weights go to models/checkpoints/bdd100k_<task>_expert/<run_name>/best.pth, TensorBoard files to models/runs/.
A run that was stopped goes on when the same line is given again.
"""

from automoe.stages.bdd100k import train_bdd100k
from automoe.stages.entry import run_entry_point

if __name__ == "__main__":
    run_entry_point(train_bdd100k, name="train_bdd100k_ddp.py", epilogue=__doc__ or "")
