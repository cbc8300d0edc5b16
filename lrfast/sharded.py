"""Checkpoints of sharded training."""

from lrfast.optim._sharded_state import ShardedState

__all__ = ["ShardedState"]
