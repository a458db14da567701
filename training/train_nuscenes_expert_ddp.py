r"""Train the nuScenes expert: 3D boxes from cameras and LiDAR, with image boxes learnt beside them.

One device:      python3 training/train_nuscenes_expert_ddp.py --data_root /data/nuscenes
Many GPUs:       torchrun --nproc_per_node=4 training/train_nuscenes_expert_ddp.py
Several nodes:   torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:PORT \
                     training/train_nuscenes_expert_ddp.py
CPU, a quick look: python3 training/train_nuscenes_expert_ddp.py --profile tiny --limit 16 --max_steps 20

Best weights go to models/checkpoints/nuscenes_expert/<run_name>/best.pth, with submission.json for the validation split
beside them, and TensorBoard files to models/runs/. A run that was stopped goes on when the same line is given again.
"""

from automoe.stages.entry import run_entry_point
from automoe.stages.nuscenes import train_nuscenes

if __name__ == "__main__":
    run_entry_point(train_nuscenes, name="train_nuscenes_expert_ddp.py", epilogue=__doc__ or "")
