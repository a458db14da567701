"""The mixture: context before experts, a gate that runs few of them, a planner on what those see."""
