"""AutoMoE: a mixture-of-experts driving stack that one person can train."""

import os

__version__ = "0.1.0"

# OpenMP threads that wait by spinning steal the cores of whoever they wait for: beside another job a training step
# takes ten times as long. A bounded spin costs next to nothing where the cores are free. It has to be said before
# PyTorch is loaded, hence here.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
