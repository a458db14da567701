"""AutoMoE: a mixture-of-experts driving stack that one person can train."""

__version__ = "0.1.0"
