r"""Train the policy that drives, by imitation of CARLA runs: a path, waypoints and a target speed from the front
camera, the car's motion and the route.

One device:      python3 training/train_carla_policy.py
On a gate's experts: python3 training/train_carla_policy.py --gating_checkpoint \
                     models/checkpoints/gating_network/base/best.pth
Many GPUs:       torchrun --nproc_per_node=4 training/train_carla_policy.py
CPU, a quick look: python3 training/train_carla_policy.py --profile tiny --limit 64 --max_steps 20

Best weights go to models/checkpoints/carla_policy/<run_name>/best.pth, TensorBoard files to models/runs/. They drive:
automoe drive --checkpoint models/checkpoints/carla_policy/<run_name>/best.pth. A run that was stopped goes on when the
same line is given again.
"""

from automoe.stages.entry import run_entry_point
from automoe.stages.policy import train_policy

if __name__ == "__main__":
    run_entry_point(train_policy, name="train_carla_policy.py", epilogue=__doc__ or "")
