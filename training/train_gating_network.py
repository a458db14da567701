r"""Train the gating network: which experts a moment is worth, how they are heard, and where to drive on what they see.

One device:      python3 training/train_gating_network.py --config models/configs/gating_network/base/config.json
Other experts:   python3 training/train_gating_network.py --expert_checkpoints a.pth b.pth c.pth d.pth
Many GPUs:       torchrun --nproc_per_node=4 training/train_gating_network.py --world_size 4
CPU, a quick look: python3 training/train_gating_network.py --profile tiny --limit 64 --max_steps 20

The experts stay as they are; what they see is kept in a cache and looked up from then on. Best weights, experts and
planner included, go to models/checkpoints/gating_network/<run>/best.pth, TensorBoard files to models/runs/. A run that
was stopped goes on when the same line is given again.
"""

from automoe.stages.entry import run_entry_point
from automoe.stages.gating import train_gating

if __name__ == "__main__":
    run_entry_point(train_gating, name="train_gating_network.py", epilogue=__doc__ or "")
