"""The training engine: one loop, several processes, checkpoints, logs. It knows no model and no data set."""
