r"""Fine-tune one BDD100K expert on CARLA: detection, drivable area or semantic segmentation.

One device:      python3 training/train_carla_bdd_experts_ddp.py --task detection
Many GPUs:       torchrun --nproc_per_node=4 training/train_carla_bdd_experts_ddp.py --task drivable
CPU, a quick look: python3 training/train_carla_bdd_experts_ddp.py --profile tiny --limit 64 --max_steps 20

It starts from the newest best.pth of the task's BDD100K expert (another with --source, none with --from_scratch). Best
weights go to models/checkpoints/carla_<task>_expert_ddp/<run_name>/best.pth, TensorBoard files to models/runs/.
A run that was stopped goes on when the same line is given again.
"""

from automoe.stages.carla import train_carla_bdd
from automoe.stages.entry import run_entry_point

if __name__ == "__main__":
    run_entry_point(train_carla_bdd, name="train_carla_bdd_experts_ddp.py", epilogue=__doc__ or "")
