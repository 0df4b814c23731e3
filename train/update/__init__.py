"""What one update computes: losses, gradients, the step, the schedule, the running average."""
