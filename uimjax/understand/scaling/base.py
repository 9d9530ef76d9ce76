"""What a scaling law is made of: a form, an objective, the rows that are fitted, and what the fit found."""

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import UsageError

Inputs = Mapping[str, Any]  # name -> [n]
Natural = dict[str, Any]  # parameter -> value, as papers state it


class Parameter(NamedTuple):
    """A coordinate of the fit and the range that starts are drawn from. `natural` is its name in papers."""

    natural: str
    low: float
    high: float


@dataclass(frozen=True)
class Form:
    """A loss of coordinates `theta` `[p]`, smooth in them, said in one of three ways, each `(theta, x)`: `value` `[n]`;
    `log_value` `[n]`, its logarithm, where that is the better-behaved of the two; or `terms`, a tuple of `[n]` (or
    scalars), the logarithms of what it is a sum of, whose derivatives are then taken from their shares of it.

    `x` holds each of the `inputs` as log(input / centre), those of `raw` as they are, those of `standard` as
    input / centre - centre_from. `natural(theta, centre)` gives the parameters as papers state them and
    `coordinates(natural, centre)` the way back, for any centre; where the logged inputs have none (1), each coordinate
    is one parameter.
    `level` names the coordinates that carry the level of the losses: their starts are relative to its logarithm.
    """

    name: str
    equation: str
    inputs: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    natural: Callable[[Any, Mapping[str, float]], Natural]
    coordinates: Callable[[Natural, Mapping[str, float]], Any]
    source: str
    value: Callable[[Any, Inputs], Any] | None = None
    log_value: Callable[[Any, Inputs], Any] | None = None
    terms: Callable[[Any, Inputs], tuple[Any, ...]] | None = None
    straight: bool = False  # the terms are linear in theta
    raw: tuple[str, ...] = ()
    standard: tuple[str, ...] = ()  # of the raw ones: those that are taken from 0 to 1, least to largest of the rows
    together: tuple[str, ...] = ()  # inputs of one unit, which share the centre of the first
    level: tuple[int, ...] = ()
    linear_in: tuple[int, ...] = ()  # coordinates in the unit of the fitted values
    shares: tuple[str, ...] = ()  # inputs from 0 to 1

    def __post_init__(self):
        said = [name for name in ("value", "log_value", "terms") if getattr(self, name) is not None]
        if len(said) != 1:
            raise UsageError(f"{self.name}: {said} arrived; one of value, log_value and terms was wanted")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.natural for parameter in self.parameters)

    def linear(self, theta: Any, x: Inputs) -> Any:
        """The value itself, not its logarithm."""
        return self.value(theta, x) if self.value is not None else jnp.exp(self.logged(theta, x))

    def logged(self, theta: Any, x: Inputs) -> Any:
        if self.terms is not None:
            return log_sum(*self.terms(theta, x))
        return jnp.log(self.linear(theta, x)) if self.log_value is None else self.log_value(theta, x)


def log_sum(*terms: Any) -> Any:
    """log of a sum of exponentials; terms `[n]` or scalars. Twice as fast here as a chain of logaddexp."""
    most = jax.lax.stop_gradient(functools.reduce(jnp.maximum, terms))
    return most + jnp.log(functools.reduce(operator.add, (jnp.exp(term - most) for term in terms)))


Kind = Literal["huber", "lad", "least_squares", "asymmetric"]
KINDS: tuple[str, ...] = ("huber", "lad", "least_squares", "asymmetric")


@dataclass(frozen=True)
class Objective:
    """The sum over rows of rho(r), with r = log loss - log prediction (`residual="linear"`: loss - prediction).

    - "huber": r^2 / 2 within `delta`, delta (|r| - delta / 2) beyond (Huber 1964; 1e-3 is Hoffmann et al.'s,
      arXiv 2203.15556);
    - "lad": |r|, least absolute deviations;
    - "least_squares": r^2 / 2;
    - "asymmetric": Huber's, `over` times where the prediction lies above the loss; over > 1 draws a lower envelope.
    """

    kind: Kind = "huber"
    delta: float = 1e-3
    over: float = 10.0
    residual: Literal["log", "linear"] = "log"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UsageError(f"objective {self.kind!r} arrived; one of {', '.join(KINDS)} was wanted")
        if not self.delta > 0 or not self.over > 0:
            raise UsageError(f"delta and over should be positive: {self}")
        if self.residual not in ("log", "linear"):
            raise UsageError(f"residual={self.residual!r} arrived; 'log' or 'linear' was wanted")

    def rho(self, r: Any, delta: Any) -> Any:
        """Of each residual; for "lad" the absolute value. `delta` as a number that programs are not compiled for."""
        size = jnp.abs(r)
        if self.kind == "lad":
            return size
        if self.kind == "least_squares":
            return r * r / 2
        return jnp.where(size <= delta, r * r / 2, delta * (size - delta / 2)) * self._side(r)

    def slopes(self, r: Any, delta: Any) -> tuple[Any, Any, Any]:
        """(rho', rho'', rho'/r): what Newton and what reweighted least squares take of a residual."""
        if self.kind == "least_squares":
            return r, jnp.ones_like(r), jnp.ones_like(r)
        if self.kind == "lad":
            raise UsageError("least absolute deviations have no slope at 0: they are fitted through Huber's")
        size, side = jnp.abs(r), self._side(r)
        inside = size <= delta
        first = jnp.where(inside, r, delta * jnp.sign(r)) * side
        weight = jnp.where(inside, 1.0, delta / jnp.where(inside, 1.0, size)) * side
        return first, jnp.where(inside, side, 0.0), weight

    def _side(self, r: Any) -> Any:
        return jnp.where(r < 0, self.over, 1.0) if self.kind == "asymmetric" else jnp.ones_like(r)


class Rows(NamedTuple):
    """What is fitted: `x` the inputs as numbers were read `{name: [n]}`, `y` `[n]` the losses, `group` `[n]` the run
    that each came from (integers), for a bootstrap by runs."""

    x: dict[str, np.ndarray]
    y: np.ndarray
    group: np.ndarray

    def take(self, kept: np.ndarray) -> "Rows":
        return Rows({name: values[kept] for name, values in self.x.items()}, self.y[kept], self.group[kept])


class Optimum(NamedTuple):
    """A local optimum: its objective, its parameters, and the share of the starts that ended there."""

    value: float
    natural: dict[str, float]
    share: float
    theta: np.ndarray


class Fit(NamedTuple):
    """A fitted law. `optima`: best first. `theta` `[p]` and `centre` are the coordinates of the best, `fixed` what was
    not fitted. `condition`: of the Gauss-Newton matrix in the coordinates of the fit, and in uncentred ones. `r2`: of
    the values themselves. `warnings`: what the design cannot tell."""

    form: Form
    objective: Objective
    rows: Rows
    theta: np.ndarray
    centre: dict[str, float]
    fixed: dict[str, float]
    optima: list[Optimum]
    starts: int
    condition: tuple[float, float]
    r2: float
    warnings: list[str]

    @property
    def value(self) -> float:
        return self.optima[0].value

    @property
    def natural(self) -> dict[str, float]:
        return self.optima[0].natural

    @property
    def free(self) -> np.ndarray:
        return np.array([name not in self.fixed for name in self.form.names])


def prepared(form: Form, x: Mapping[str, Any], centre: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Inputs as the form takes them."""
    found = {}
    for name in form.inputs:
        values = np.asarray(x[name], np.float64)
        if name in form.standard:
            found[name] = values / centre[name] - centre[f"{name}_from"]
        else:
            found[name] = values if name in form.raw else np.log(values / centre[name])
    return found


def unit_of(form: Form, y: np.ndarray) -> np.ndarray:
    """The unit of each coordinate `[p]`: the largest fitted value for those that are measured in it, 1 for the rest."""
    found = np.ones(len(form.parameters))
    found[list(form.linear_in)] = float(np.max(np.abs(y))) or 1.0
    return found


def centre_of(form: Form, x: Mapping[str, Any]) -> dict[str, float]:
    """The geometric mean of each logged input: there levels and exponents hardly correlate."""
    found = {name: float(np.exp(np.mean(np.log(x[name])))) for name in form.inputs if name not in form.raw}
    found |= {name: found[form.together[0]] for name in form.together}
    for name in form.standard:
        found[name] = float(np.ptp(x[name])) or 1.0
        found[f"{name}_from"] = float(np.min(x[name])) / found[name]
    return found


def uncentred(form: Form, centre: dict[str, float]) -> dict[str, float]:
    """The centre at which each coordinate is one parameter."""
    logged = [name for name in form.inputs if name not in form.raw]
    return centre | dict.fromkeys(logged, 1.0) | {f"{name}_from": 0.0 for name in form.standard}


def target(objective: Objective, y: np.ndarray) -> np.ndarray:
    """What residuals are taken of."""
    return np.log(y) if objective.residual == "log" else y


def natural_all(form: Form, theta: np.ndarray, centre: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Each parameter, as papers state it, at many places `[S, p]`: `{name: [S]}` in float64."""
    with jax.enable_x64(True):
        found = _translated(form)(jnp.asarray(np.asarray(theta, np.float64)), _wide(centre))
        return {name: np.asarray(values) for name, values in found.items()}


def coordinates_of(form: Form, natural: Mapping[str, float], centre: Mapping[str, float]) -> np.ndarray:
    """The coordinates `[p]` of parameters as papers state them."""
    with jax.enable_x64(True):
        return np.asarray(_translated(form, back=True)(_wide(natural), _wide(centre)), np.float64)


def moved(form: Form, theta: np.ndarray, centre: Mapping[str, float], to: Mapping[str, float]) -> np.ndarray:
    """Coordinates `[S, p]` at one centre in those at another."""
    with jax.enable_x64(True):
        at = _translated(form)(jnp.asarray(np.asarray(theta, np.float64)), _wide(centre))
        return np.array(_each(form)(at, _wide(to)), np.float64)


def _wide(values: Mapping[str, float]) -> dict[str, Any]:
    return {name: jnp.asarray(value, jnp.float64) for name, value in values.items()}


@functools.lru_cache(maxsize=64)
def _translated(form: Form, back: bool = False):
    return jax.jit(form.coordinates if back else jax.vmap(form.natural, in_axes=(0, None)))


@functools.lru_cache(maxsize=64)
def _each(form: Form):
    return jax.jit(jax.vmap(form.coordinates, in_axes=(0, None)))
