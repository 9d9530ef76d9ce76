"""Forget losses of one example: each falls as the example is forgotten, and is a value that holds its strengths.

Of an example with the labels y_t at the tokens t that count (|y| of them; a class is one token), NLL_t in nats, its sum
NLL, `ref` the model before, sg() a constant, z the logits `[V]` of a token:

    grad_ascent   - mean_t NLL_t                                             (Jang et al. 2023, arXiv 2210.01504)
    grad_diff     the same beside a retain loss                     (Liu et al. 2022, arXiv 2203.12817)
    npo           - (2 / beta) log sigmoid(beta (NLL - NLL_ref))    (Zhang et al. 2024, arXiv 2404.05868)
    simnpo        - (2 / beta) log sigmoid(beta (NLL / |y| - delta))              (Fan et al. 2024, arXiv 2410.07163)
    dpo           - (2 / beta) log sigmoid(beta (D_other - D)),  D = NLL_ref - NLL, of another answer and of this one
                                                                    (Rafailov et al. 2023, arXiv 2305.18290)
    rmu           mean_t mean_d (h_td - strength u_d)^2, h `[T, D]` hidden, u a random direction of length 1
                                                                    (Li et al. 2024, arXiv 2403.03218)
    undial        mean_t CE(softmax(z_ref - strength 1_y), z)       (Dong et al. 2024, arXiv 2402.10052)
    ce_u          mean_t CE(sg softmax(z with z_y = -inf), z), all but the first `skip` tokens (Yang et al. 2025)
    wga           - mean_t sg(p_t^beta) NLL_t,  p_t = exp(-NLL_t)   (Wang et al. 2025, arXiv 2502.19301)
    satimp        - mean_t sg(p_t^beta1 (1 - p_t)^beta2) NLL_t      (Yang et al. 2025, arXiv 2505.11953)
    pdu           mean_t (max z - mean z)^2, beneath a bound on the retain loss (primal-dual; see `uimjax.mitigate`)
    cda           (NLL + NLL of the counterfactual) / 2 + js mean_t JS(p_t, p_t of the counterfactual): nothing is
                  forgotten but what sets the two apart                       (Lu et al. 2018, arXiv 1807.11714)
    learn         NLL of the other answer: nothing is forgotten, synthetic rows are learned

Strengths and weights `gamma` (of this loss) and `alpha` (of the retain loss) default to those of open-unlearning's
reference code. Where ours departs from it: `uimjax help mitigate`.
"""

import abc
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from uimjax.errors import UnknownNameError, UsageError


class Seen(NamedTuple):
    """One example as a model sees it: `nll` `[T]`, `counted` `[T]` bool; where they are needed `labels` `[T]`, `logits`
    `[T, V]` and `hidden` `[T, D]`. Where a token does not count its entries mean nothing."""

    nll: Any
    counted: Any
    labels: Any = None
    logits: Any = None
    hidden: Any = None

    @property
    def total(self) -> Any:
        return jnp.sum(jnp.where(self.counted, self.nll, 0))

    def mean(self, each: Any, counted: Any = None) -> Any:
        """Of the tokens that count; 0 where none does."""
        counted = self.counted if counted is None else counted
        return jnp.sum(jnp.where(counted, each, 0)) / jnp.maximum(jnp.sum(counted), 1)


class Views(NamedTuple):
    """What a forget loss may look at: the example `now`, under the model `before`, and the other answer under both;
    `direction` `[D]` of length 1."""

    now: Seen
    before: Seen | None = None
    other: Seen | None = None
    other_before: Seen | None = None
    direction: Any = None


@dataclass(frozen=True)
class Forget(abc.ABC):
    """A loss of `Views`. `gamma` and `alpha` weigh it and the retain loss. `needs`: of "before" (the NLL under the
    model before), "logits", "logits before", "other" and "hidden"."""

    gamma: float = 1.0
    alpha: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self):
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise UsageError(f"{each.name} is a number from 0 on, and {value} arrived: {self}")
        if getattr(self, "beta", 1) == 0 and not isinstance(self, WGA):
            raise UsageError(f"beta divides the loss, so it is above 0: {self}")

    @abc.abstractmethod
    def __call__(self, views: Views) -> Any:
        """Of one example, a scalar."""


@dataclass(frozen=True)
class GradAscent(Forget):
    alpha: float = 0.0
    per: Literal["token", "row"] = "token"

    def __call__(self, views: Views) -> Any:
        return -(views.now.total if self.per == "row" else views.now.mean(views.now.nll))


@dataclass(frozen=True)
class GradDiff(GradAscent):
    alpha: float = 1.0


@dataclass(frozen=True)
class NPO(Forget):
    beta: float = 0.1

    needs = frozenset({"before"})

    def __call__(self, views: Views) -> Any:
        assert views.before is not None  # it is among the needs
        return -(2 / self.beta) * jax.nn.log_sigmoid(self.beta * (views.now.total - views.before.total))


@dataclass(frozen=True)
class SimNPO(Forget):
    gamma: float = 0.125
    beta: float = 4.5
    delta: float = 0.0

    def __call__(self, views: Views) -> Any:
        return -(2 / self.beta) * jax.nn.log_sigmoid(self.beta * (views.now.mean(views.now.nll) - self.delta))


@dataclass(frozen=True)
class DPO(Forget):
    beta: float = 0.1

    needs = frozenset({"before", "other"})

    def __call__(self, views: Views) -> Any:
        now, before, other, other_before = views[:4]
        assert before is not None and other is not None and other_before is not None  # noqa: PT018  # the needs
        lead = (other_before.total - other.total) - (before.total - now.total)
        return -(2 / self.beta) * jax.nn.log_sigmoid(self.beta * lead)


@dataclass(frozen=True)
class RMU(Forget):
    strength: float = 2.0

    needs = frozenset({"hidden"})

    def __call__(self, views: Views) -> Any:
        away = jnp.square(views.now.hidden - self.strength * views.direction[None])
        return views.now.mean(jnp.mean(away, -1))


@dataclass(frozen=True)
class UNDIAL(Forget):
    alpha: float = 0.0
    strength: float = 10.0

    needs = frozenset({"logits", "logits before"})

    def __call__(self, views: Views) -> Any:
        now, before = views.now, views.before
        assert before is not None  # it is among the needs
        z = before.logits - self.strength * jax.nn.one_hot(now.labels, now.logits.shape[-1], dtype=now.logits.dtype)
        return now.mean(-jnp.sum(jax.nn.softmax(z) * jax.nn.log_softmax(now.logits), -1))


@dataclass(frozen=True)
class CEU(Forget):
    alpha: float = 0.0
    skip: int = 1

    needs = frozenset({"logits"})

    def __call__(self, views: Views) -> Any:
        now = views.now
        own = jax.nn.one_hot(now.labels, now.logits.shape[-1], dtype=bool)
        target = jax.lax.stop_gradient(jax.nn.softmax(jnp.where(own, -jnp.inf, now.logits)))
        later = now.counted & (jnp.cumsum(now.counted) > self.skip)
        counted = jnp.where(jnp.any(later), later, now.counted)  # an answer of no more than `skip` tokens counts whole
        return now.mean(-jnp.sum(target * jax.nn.log_softmax(now.logits), -1), counted)


@dataclass(frozen=True)
class WGA(Forget):
    beta: float = 1.0

    def __call__(self, views: Views) -> Any:
        weight = jax.lax.stop_gradient(jnp.exp(-self.beta * views.now.nll))
        return -views.now.mean(weight * views.now.nll)


@dataclass(frozen=True)
class SatImp(Forget):
    gamma: float = 0.1
    beta1: float = 5.0
    beta2: float = 1.0

    def __call__(self, views: Views) -> Any:
        p = jnp.exp(-views.now.nll)
        weight = jax.lax.stop_gradient(p**self.beta1 * (1 - p) ** self.beta2)
        return -views.now.mean(weight * views.now.nll)


@dataclass(frozen=True)
class PDU(Forget):
    """`bound`: the retain loss that is to be kept, nats a token; `alpha` is the dual variable at the start, and rises
    by `rate` times what the retain loss has too much, after `warmup` of the steps."""

    alpha: float = 50.0
    bound: float = 1.0
    rate: float = 1.0
    warmup: float = 0.5

    needs = frozenset({"logits"})

    def __call__(self, views: Views) -> Any:
        z = views.now.logits
        return views.now.mean(jnp.square(jnp.max(z, -1) - jnp.mean(z, -1)))


@dataclass(frozen=True)
class Counterfactual(Forget):
    """The other answer is the row with the groups' words in each other's place. `js`: weight of the Jensen-Shannon
    divergence, in nats, between both predictions, place by place: for pairs of words of as many tokens."""

    js: float = 0.0

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # of a value, not of the class
        return frozenset({"other"} | ({"logits"} if self.js else set()))

    def __call__(self, views: Views) -> Any:
        now, other = views.now, views.other
        assert other is not None  # it is among the needs
        both = (now.total + other.total) / 2
        if not self.js:
            return both
        p, q = jax.nn.log_softmax(now.logits), jax.nn.log_softmax(other.logits)
        middle = jnp.logaddexp(p, q) - jnp.log(2.0)
        js = jnp.sum(jnp.exp(p) * (p - middle) + jnp.exp(q) * (q - middle), -1) / 2
        return both + self.js * now.mean(js, now.counted & other.counted)


@dataclass(frozen=True)
class Learn(Forget):
    """The other answer alone is looked at: a synthetic row that is to be learned."""

    needs = frozenset({"other"})

    def __call__(self, views: Views) -> Any:
        assert views.other is not None  # it is among the needs
        return views.other.total


LOSSES: dict[str, type[Forget]] = {
    "grad_ascent": GradAscent, "grad_diff": GradDiff, "npo": NPO, "simnpo": SimNPO, "dpo": DPO, "rmu": RMU,
    "undial": UNDIAL, "ce_u": CEU, "wga": WGA, "satimp": SatImp, "pdu": PDU, "cda": Counterfactual,
}  # fmt: skip


def get(loss: str | Forget) -> Forget:
    """A loss by its name, with the strengths of the reference code; a value as it is.

    Raises:
        UnknownNameError
    """
    if isinstance(loss, Forget):
        return loss
    if loss not in LOSSES:
        raise UnknownNameError("forget loss", loss, LOSSES)
    return LOSSES[loss]()
