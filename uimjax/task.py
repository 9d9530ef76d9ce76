"""Task and Measurement: what is trained, what failed, and the one sign convention.

Sign and units, once, for every method, table and file. `f` is a measurement that rises with the failure.
The score of training example i is

    tau_i = df/d(eps_i) = - grad f^T H^-1 grad loss_i

for upweighting example i by eps_i. Positive = proponent of the failure (a culprit), negative = opponent.
Removing the example is predicted to change f by -tau_i / n. A method without units says "relative".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uimjax.errors import UsageError

SIGN = "positive = proponent: upweighting this training row raises f, the failure; negative = opponent"
NATS = "nats: removing the row is predicted to change f by -score/n (first order)"
RELATIVE = "relative: only the order and the sign of the scores mean something"


@dataclass(frozen=True)
class Task:
    """What is trained, for ONE example. The engine batches, so no mean-or-sum scale bug can arise.

    `loss(params, example)` returns nats: a scalar, or `[T]` (one entry a token; a document's loss is their sum).
    The other parts serve the methods that need them, and such a method names the part it lacks:

    - `outputs(params, example)`: logits `[C]` (margins, predictions);
    - `features(params, example)`: a representation `[D]` (`rep_sim`);
    - `label(example)`: the class of an example, an integer (margins);
    - `nll(outputs, example)`: the loss as a function of the outputs, so that `loss` = `nll` of `outputs` (Fisher,
      Gauss-Newton). Left out, `outputs` are taken for logits `[C]` or `[T, C]` of a softmax, and that is proven on the
      first rows against `loss`;
    - `sample(key, outputs, example) -> example`: the example with labels drawn from the model (sampled Fisher). Left
      out, classes are drawn from the softmax;
    - `trained(params, example, key)`: the loss with the noise that training draws (dropout, augmentation), if it does.
      Trainings minimise it, with a key that follows from seed, epoch and row alone; all else reads `loss`;
    - `batch_loss(params, batch)`: the loss that was really trained, as the SUM over the batch: compared with the
      sum of `loss` over examples, so that batch norm or anything else that couples examples cannot pass unseen;
    - `segments(example)`: `[T]` integers, where a row holds several documents that do not see each other (`rows.pack`):
      1 to `documents` for their positions, 0 for padding. Each document is then an example of its own: results are
      `[B * documents]`, row by row, and the loss must be `[T]`.

    `include` and `exclude` choose the parameters that are attributed, by patterns of their paths as `uj.sites` prints
    them: `*` stands for anything, also across `/` (`include=("*lora*",)`, `exclude=("embed*",)`). The others count as
    constants; `coverage` says what share is left.

    A frozen dataclass of functions: hashable when they are, so a compiled program is kept per task.
    """

    loss: Callable[[Any, Any], Any]
    outputs: Callable[[Any, Any], Any] | None = None
    features: Callable[[Any, Any], Any] | None = None
    label: Callable[[Any], Any] | None = None
    nll: Callable[[Any, Any], Any] | None = None
    sample: Callable[[Any, Any, Any], Any] | None = None
    trained: Callable[[Any, Any, Any], Any] | None = None
    batch_loss: Callable[[Any, Any], Any] | None = None
    segments: Callable[[Any], Any] | None = None
    documents: int = 0
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        if (self.segments is None) != (self.documents == 0) or self.documents < 0:
            raise UsageError(
                f"segments={self.segments} and documents={self.documents} belong together: the number of each "
                "position's document, and how many a row holds at most"
            )
        for name in ("include", "exclude"):
            if isinstance(patterns := getattr(self, name), str):
                raise UsageError(f"{name}={patterns!r} is a string; a tuple of patterns was wanted: ({patterns!r},)")
            object.__setattr__(self, name, tuple(patterns))


@dataclass(frozen=True)
class Measurement:
    """What failed: `fun(params, query)` returns a scalar that RISES with the failure.

    `unit` is "nats" where `fun` is a (difference of) log-probabilities, else "relative". A contrast (the bad answer
    minus its matched safe twin) traces far better than a plain log-probability: see `contrast`.
    """

    name: str
    fun: Callable[[Any, Any], Any]
    unit: str = "nats"
    reading: str = ""

    def as_task(self) -> Task:
        """The measurement seen as a loss, so that queries go through the same taps as training examples."""
        return Task(loss=self.fun)


def contrast(name: str, fun: Callable[[Any, Any], Any], reading: str = "") -> Measurement:
    """`f(params, (bad, safe)) = fun(params, bad) - fun(params, safe)`, for a query with a matched safe twin.

    What bad and safe inputs share cancels, so the gradient points at the cause of the failure alone.
    """

    def difference(params, query):
        bad, safe = query
        return fun(params, bad) - fun(params, safe)

    return Measurement(name, difference, reading=reading)
