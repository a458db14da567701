"""The specialists. Importing this package registers them all by name (`registry.build_expert`)."""

from automoe.experts import dense, detection

__all__ = ["dense", "detection"]
