"""What is written during a run: metrics, heartbeat, checkpoints by a thread, backups. Knows no Run."""
