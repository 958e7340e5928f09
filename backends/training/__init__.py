"""Training without a framework: the loop, schedules, checkpoints, the run's log and report."""
