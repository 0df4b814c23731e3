"""Does Vox hold on this machine, and how long will it take: what `vox check` measures."""
