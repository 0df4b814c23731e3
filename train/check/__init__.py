"""What `vox check` measures of phase 2, and the updates outside a run that benchmarks use too."""
