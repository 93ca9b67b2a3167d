"""What can go wrong in a training step."""


class NonFiniteError(RuntimeError):
    """The loss or the gradient of a step was NaN or infinite. The step was not applied; the weights are as before."""

    def __init__(self, step: str, loss: float, grad_norm: float, rank: int) -> None:
        super().__init__(step, loss, grad_norm, rank)
        self.step, self.loss, self.grad_norm, self.rank = step, loss, grad_norm, rank

    def __str__(self) -> str:
        return (
            f"{self.step}: not applied, the weights are as before: loss {self.loss}, gradient norm {self.grad_norm} "
            f"(rank {self.rank})"
        )
