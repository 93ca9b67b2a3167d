"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from rljob_api.v1alpha1.optimizer import OptimizerSpec


def learning_rate(spec: OptimizerSpec, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0 within its stage, of `total_steps`.

    Warm-up over W steps (`warmupSteps`, else ceil(`warmupRatio` · total)) is linear from 0: step s gets
    lr·(s + 1)/W, so that the first step already learns.
    After it, with p in [0, 1] the share done of the steps that remain:
      constant:            lr
      linear:              lr·(1 − p·(1 − m))
      cosine:              lr·(1 + cos πp)/2
      cosine_with_min_lr:  lr·(m + (1 − m)·(1 + cos πp)/2)          with m = `minLrRate`
    """
    if step < 0:
        raise ValueError(f"step {step} is negative")
    schedule = spec.schedule
    warmup = schedule.warmup_steps or math.ceil(schedule.warmup_ratio * total_steps)
    if step < warmup:
        return spec.lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    low = schedule.min_lr_rate
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress * (1.0 - low),
        "cosine": cosine,
        "cosine_with_min_lr": low + (1.0 - low) * cosine,
    }[schedule.type]
    return spec.lr * factor
