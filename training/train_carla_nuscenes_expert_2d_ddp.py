r"""Fine-tune the image branch of the nuScenes expert on CARLA: boxes in single pictures.

One device:      python3 training/train_carla_nuscenes_expert_2d_ddp.py --data_root datasets/carla/preprocessed
Many GPUs:       torchrun --nproc_per_node=4 training/train_carla_nuscenes_expert_2d_ddp.py --num_queries 196
CPU, a quick look: python3 training/train_carla_nuscenes_expert_2d_ddp.py --profile tiny --limit 64 --max_steps 20

It starts from the newest best.pth of the nuScenes expert (another with --source, none with --from_scratch). Best
weights go to models/checkpoints/carla_nuscenes_2d_ddp/<run_name>/best.pth, TensorBoard files to models/runs/.
A run that was stopped goes on when the same line is given again.
"""

from automoe.stages.carla import train_carla_nuscenes_2d
from automoe.stages.entry import run_entry_point

if __name__ == "__main__":
    run_entry_point(train_carla_nuscenes_2d, name="train_carla_nuscenes_expert_2d_ddp.py", epilogue=__doc__ or "")
