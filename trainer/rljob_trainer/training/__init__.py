"""Training ranks: `rank` is the process, `steps` a training step, `interface` what a backend of `registry` supplies."""
