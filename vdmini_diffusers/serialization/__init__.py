"""Files: weights from shard to shard, atomic writes, pipeline folders, repositories on the Hub, model cards."""
