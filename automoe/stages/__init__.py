"""The stages of training as functions: what the entry points under `training/` do, one file a stage."""
