"""What belongs to CARLA and needs no simulator: its axes, and the folders of a recorded run."""
