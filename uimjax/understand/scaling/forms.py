"""The forms of scaling laws, in coordinates that behave: logarithms of levels at the centre of the data.

Each is made once: programs are compiled for a form, and kept.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from uimjax.errors import UnknownNameError, UsageError
from uimjax.references import resolve
from uimjax.understand.scaling.base import Form, Inputs, Natural, Parameter, log_sum

LEVEL = (-3.0, 0.0)  # of a term's logarithm, relative to that of the losses
EXPONENT = (0.05, 1.0)


def _level(theta: Any, exponent: Any, centre: float) -> Any:
    """A of A / N^alpha, from its logarithm at the centre."""
    return jnp.exp(theta + exponent * jnp.log(centre))


def _back(level: Any, exponent: Any, centre: float) -> Any:
    return jnp.log(level) - exponent * jnp.log(centre)


@functools.cache
def chinchilla() -> Form:
    def terms(t: Any, x: Inputs) -> tuple[Any, ...]:
        return t[0] - t[3] * x["N"], t[1] - t[4] * x["D"], t[2]

    def natural(t: Any, c: Mapping[str, float]) -> Natural:
        return {"A": _level(t[0], t[3], c["N"]), "B": _level(t[1], t[4], c["D"]), "E": jnp.exp(t[2]),
                "alpha": t[3], "beta": t[4]}  # fmt: skip

    def coordinates(p: Natural, c: Mapping[str, float]) -> Any:
        return jnp.stack([_back(p["A"], p["alpha"], c["N"]), _back(p["B"], p["beta"], c["D"]), jnp.log(p["E"]),
                          p["alpha"], p["beta"]])  # fmt: skip

    parameters = (Parameter("A", *LEVEL), Parameter("B", *LEVEL), Parameter("E", *LEVEL),
                  Parameter("alpha", *EXPONENT), Parameter("beta", *EXPONENT))  # fmt: skip
    equation = "L = E + A / N^alpha + B / D^beta"
    return Form("chinchilla", equation, ("N", "D"), parameters, natural, coordinates,
                "Hoffmann et al. 2022, arXiv 2203.15556", terms=terms, straight=True, level=(0, 1, 2))  # fmt: skip


@functools.cache
def power() -> Form:
    def terms(t: Any, x: Inputs) -> tuple[Any, ...]:
        return t[0] - t[2] * x["x"], t[1]

    def natural(t: Any, c: Mapping[str, float]) -> Natural:
        return {"A": _level(t[0], t[2], c["x"]), "E": jnp.exp(t[1]), "alpha": t[2]}

    def coordinates(p: Natural, c: Mapping[str, float]) -> Any:
        return jnp.stack([_back(p["A"], p["alpha"], c["x"]), jnp.log(p["E"]), p["alpha"]])

    parameters = (Parameter("A", *LEVEL), Parameter("E", *LEVEL), Parameter("alpha", *EXPONENT))
    return Form("power", "L = E + A / x^alpha", ("x",), parameters, natural, coordinates,
                "Hestness et al. 2017, arXiv 1712.00409", terms=terms, straight=True, level=(0, 1))  # fmt: skip


@functools.cache
def trend() -> Form:
    """For measurements of any sign, which need not fall: fit it with `residual="linear"`."""

    def value(t: Any, x: Inputs) -> Any:
        return t[0] + t[1] * jnp.exp(-t[2] * x["x"])

    def natural(t: Any, c: Mapping[str, float]) -> Natural:
        return {"E": t[0], "A": t[1] * jnp.exp(t[2] * jnp.log(c["x"])), "alpha": t[2]}

    def coordinates(p: Natural, c: Mapping[str, float]) -> Any:
        return jnp.stack([p["E"], p["A"] * jnp.exp(-p["alpha"] * jnp.log(c["x"])), p["alpha"]])

    parameters = (Parameter("E", -2.0, 2.0), Parameter("A", -2.0, 2.0), Parameter("alpha", -1.0, 1.5))
    return Form("trend", "f = E + A / x^alpha, A and E of any sign", ("x",), parameters, natural, coordinates,
                "the power law with signs", value=value, linear_in=(0, 1))  # fmt: skip


@functools.cache
def kaplan() -> Form:
    def log_value(t: Any, x: Inputs) -> Any:
        alpha_n, alpha_d = jnp.exp(t[2]), jnp.exp(t[3])
        return alpha_d * log_sum(alpha_n / alpha_d * (t[0] - x["N"]), t[1] - x["D"])

    def natural(t: Any, c: Mapping[str, float]) -> Natural:
        alpha_n, alpha_d = jnp.exp(t[2]), jnp.exp(t[3])
        return {"Nc": jnp.exp(t[0] + jnp.log(c["N"])), "Dc": jnp.exp(t[1] + jnp.log(c["D"])), "alpha_N": alpha_n,
                "alpha_D": alpha_d}  # fmt: skip

    def coordinates(p: Natural, c: Mapping[str, float]) -> Any:
        return jnp.stack([jnp.log(p["Nc"]) - jnp.log(c["N"]), jnp.log(p["Dc"]) - jnp.log(c["D"]),
                          jnp.log(p["alpha_N"]), jnp.log(p["alpha_D"])])  # fmt: skip

    parameters = (Parameter("Nc", -5.0, 15.0), Parameter("Dc", -5.0, 15.0), Parameter("alpha_N", -4.0, 0.0),
                  Parameter("alpha_D", -4.0, 0.0))  # fmt: skip
    equation = "L = [(Nc / N)^(alpha_N / alpha_D) + Dc / D]^alpha_D"
    return Form("kaplan", equation, ("N", "D"), parameters, natural, coordinates,
                "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5", log_value=log_value)  # fmt: skip


@functools.cache
def overtraining() -> Form:
    def terms(t: Any, x: Inputs) -> tuple[Any, ...]:
        return t[0] - t[3] * x["N"], t[1] - t[3] * (x["M"] + x["N"] + jnp.log(6.0) / 2), t[2]

    def natural(t: Any, c: Mapping[str, float]) -> Natural:
        return {"A": _level(t[0], t[3], c["N"]), "B": _level(t[1], t[3], c["M"] * c["N"]), "E": jnp.exp(t[2]),
                "eta": t[3]}  # fmt: skip

    def coordinates(p: Natural, c: Mapping[str, float]) -> Any:
        return jnp.stack([_back(p["A"], p["eta"], c["N"]), _back(p["B"], p["eta"], c["M"] * c["N"]), jnp.log(p["E"]),
                          p["eta"]])  # fmt: skip

    parameters = (Parameter("A", *LEVEL), Parameter("B", *LEVEL), Parameter("E", *LEVEL), Parameter("eta", *EXPONENT))
    equation = "L = E + A N^-eta + B 6^(-eta/2) (M N)^-eta, M = D / N"
    return Form("overtraining", equation, ("N", "M"), parameters, natural, coordinates,
                "Gadre et al. 2024, arXiv 2403.08540", terms=terms, straight=True, level=(0, 1, 2))  # fmt: skip


@functools.cache
def corrupted(sized: bool = False) -> Form:
    """Noise of share q in the data counts as less of it: D exp(-kappa q). `sized`: with models of several sizes."""
    inputs = ("N", "D", "noise") if sized else ("D", "noise")
    extra = (Parameter("A", *LEVEL), Parameter("alpha", *EXPONENT)) if sized else ()

    def terms(t: Any, x: Inputs) -> tuple[Any, ...]:
        found = (t[0] - t[2] * (x["D"] - t[3] * x["noise"]), t[1])
        return (*found, t[4] - t[5] * x["N"]) if sized else found

    def natural(t: Any, c: Mapping[str, float]) -> Natural:
        found = {"B": _level(t[0], t[2], c["D"]), "E": jnp.exp(t[1]), "beta": t[2], "kappa": t[3]}
        return found | ({"A": _level(t[4], t[5], c["N"]), "alpha": t[5]} if sized else {})

    def coordinates(p: Natural, c: Mapping[str, float]) -> Any:
        found = [_back(p["B"], p["beta"], c["D"]), jnp.log(p["E"]), p["beta"], p["kappa"]]
        return jnp.stack(found + ([_back(p["A"], p["alpha"], c["N"]), p["alpha"]] if sized else []))

    parameters = (Parameter("B", *LEVEL), Parameter("E", *LEVEL), Parameter("beta", *EXPONENT),
                  Parameter("kappa", 0.0, 8.0), *extra)  # fmt: skip
    equation = f"L = E + {'A / N^alpha + ' if sized else ''}B / (D exp(-kappa noise))^beta"
    return Form("corrupted_sized" if sized else "corrupted", equation, inputs, parameters, natural,
                coordinates, "effective data, as repeats count in arXiv 2305.16264", raw=("noise",), shares=("noise",),
                terms=terms, level=(0, 1, 4) if sized else (0, 1))  # fmt: skip


@functools.cache
def data_constrained() -> Form:
    """Repeats of U unique tokens count less and less, and so do parameters beyond what U can use."""

    def terms(t: Any, x: Inputs) -> tuple[Any, ...]:
        alpha, beta = t[3], t[4]
        unique = jnp.minimum(x["U"], x["D"])  # no more tokens than were seen
        # coordinates are of the levels at the centre, where D and U share one
        best = (jnp.log(alpha / beta) + t[0] - t[1]) / (alpha + beta)  # log G
        unique_n = jnp.minimum(x["N"], best + (unique + best) * beta / alpha)
        size = unique_n + _saturated(jnp.expm1(x["N"] - unique_n), jnp.exp(t[6]))
        data = unique + _saturated(jnp.expm1(x["D"] - unique), jnp.exp(t[5]))
        return t[0] - alpha * size, t[1] - beta * data, t[2]

    def natural(t: Any, c: Mapping[str, float]) -> Natural:
        return {"A": _level(t[0], t[3], c["N"]), "B": _level(t[1], t[4], c["D"]), "E": jnp.exp(t[2]), "alpha": t[3],
                "beta": t[4], "RD": jnp.exp(t[5]), "RN": jnp.exp(t[6])}  # fmt: skip

    def coordinates(p: Natural, c: Mapping[str, float]) -> Any:
        return jnp.stack([_back(p["A"], p["alpha"], c["N"]), _back(p["B"], p["beta"], c["D"]), jnp.log(p["E"]),
                          p["alpha"], p["beta"], jnp.log(p["RD"]), jnp.log(p["RN"])])  # fmt: skip

    parameters = (Parameter("A", *LEVEL), Parameter("B", *LEVEL), Parameter("E", *LEVEL), Parameter("alpha", *EXPONENT),
                  Parameter("beta", *EXPONENT), Parameter("RD", -1.0, 6.0), Parameter("RN", -1.0, 6.0))  # fmt: skip
    equation = "L = E + A / N'^alpha + B / D'^beta, X' = X (1 + R* (1 - exp(-R / R*))), X = U, N_opt(U)"
    return Form("data_constrained", equation, ("N", "D", "U"), parameters, natural, coordinates,
                "Muennighoff et al. 2023, arXiv 2305.16264", terms=terms, together=("D", "U"),
                level=(0, 1, 2))  # fmt: skip


def _saturated(repeats: Any, most: Any) -> Any:
    """log(1 + R* (1 - exp(-R / R*))), by expm1: with exp a false optimum appears at R* of 1e17."""
    return jnp.log1p(-most * jnp.expm1(-repeats / most))


@functools.cache
def broken(breaks: int = 1) -> Form:
    """A smoothly broken power law with so many breaks."""

    def terms(t: Any, x: Inputs) -> tuple[Any, ...]:
        found = t[1] - t[2] * x["x"]
        for k in range(breaks):
            change, at, width = t[3 + 3 * k], t[4 + 3 * k], jnp.exp(t[5 + 3 * k])
            found = found - change * width * jnp.logaddexp((x["x"] - at) / width, 0.0)
        return t[0], found

    def natural(t: Any, c: Mapping[str, float]) -> Natural:
        found = {"a": jnp.exp(t[0]), "b": _level(t[1], t[2], c["x"]), "c0": t[2]}
        for k in range(breaks):
            at = jnp.exp(t[4 + 3 * k] + jnp.log(c["x"]))
            found |= {f"c{k + 1}": t[3 + 3 * k], f"d{k + 1}": at, f"f{k + 1}": jnp.exp(t[5 + 3 * k])}
        return found

    def coordinates(p: Natural, c: Mapping[str, float]) -> Any:
        found = [jnp.log(p["a"]), _back(p["b"], p["c0"], c["x"]), p["c0"]]
        for k in range(1, breaks + 1):
            found += [p[f"c{k}"], jnp.log(p[f"d{k}"]) - jnp.log(c["x"]), jnp.log(p[f"f{k}"])]
        return jnp.stack(found)

    parameters = [Parameter("a", *LEVEL), Parameter("b", *LEVEL), Parameter("c0", -0.5, 1.5)]
    for k in range(1, breaks + 1):
        parameters += [Parameter(f"c{k}", -1.0, 1.0), Parameter(f"d{k}", -3.0, 3.0), Parameter(f"f{k}", -3.0, 0.5)]
    equation = f"L = a + b x^-c0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i), i = 1..{breaks}"
    return Form(f"broken{breaks}", equation, ("x",), tuple(parameters), natural, coordinates,
                "Caballero et al. 2022, arXiv 2210.14891", terms=terms, level=(0, 1))  # fmt: skip


@functools.cache
def sigmoid() -> Form:
    """From a loss to a task's score: fit it with `residual="linear"`."""

    def value(t: Any, x: Inputs) -> Any:
        return t[0] / (1 + jnp.exp(-t[2] * (x["loss"] - t[3]))) + t[1]

    def natural(t: Any, c: Mapping[str, float]) -> Natural:
        return {"a": t[0], "b": t[1], "k": t[2] / c["loss"], "x0": (t[3] + c["loss_from"]) * c["loss"]}

    def coordinates(p: Natural, c: Mapping[str, float]) -> Any:
        return jnp.stack([p["a"], p["b"], p["k"] * c["loss"], p["x0"] / c["loss"] - c["loss_from"]])

    parameters = (Parameter("a", 0.1, 1.0), Parameter("b", 0.0, 0.5), Parameter("k", -40.0, -1.0),
                  Parameter("x0", -0.5, 1.5))  # fmt: skip
    return Form("sigmoid", "score = a / (1 + exp(-k (loss - x0))) + b", ("loss",), parameters, natural,
                coordinates, "Bhagia et al. 2024, arXiv 2412.04403", value=value, raw=("loss",), standard=("loss",),
                linear_in=(0, 1))  # fmt: skip


@functools.cache
def exponential() -> Form:
    """From a loss to an error, the second step of over-training: fit it with `residual="linear"`."""

    def value(t: Any, x: Inputs) -> Any:
        return t[0] - t[1] * jnp.exp(-t[2] * x["loss"])

    def natural(t: Any, c: Mapping[str, float]) -> Natural:
        return {"epsilon": t[0], "k": t[1] * jnp.exp(t[2] * c["loss_from"]), "gamma": t[2] / c["loss"]}

    def coordinates(p: Natural, c: Mapping[str, float]) -> Any:
        gamma = p["gamma"] * c["loss"]
        return jnp.stack([p["epsilon"], p["k"] * jnp.exp(-gamma * c["loss_from"]), gamma])

    parameters = (Parameter("epsilon", 0.2, 1.0), Parameter("k", 0.0, 1.0), Parameter("gamma", 0.1, 8.0))
    return Form("exponential", "error = epsilon - k exp(-gamma loss)", ("loss",), parameters, natural, coordinates,
                "Gadre et al. 2024, arXiv 2403.08540", value=value, raw=("loss",), standard=("loss",),
                linear_in=(0, 1))  # fmt: skip


FORMS: dict[str, Callable[[], Form]] = {
    "chinchilla": chinchilla, "kaplan": kaplan, "power": power, "trend": trend, "overtraining": overtraining,
    "corrupted": corrupted, "corrupted_sized": lambda: corrupted(sized=True), "data_constrained": data_constrained,
    "broken1": broken, "broken2": lambda: broken(2), "broken3": lambda: broken(3), "sigmoid": sigmoid,
    "exponential": exponential,
}  # fmt: skip


def own(
    fun: Callable[[Natural, Inputs], Any],
    inputs: tuple[str, ...],
    parameters: Mapping[str, tuple[float, float]],
    positive: tuple[str, ...] = (),
) -> Form:
    """A form of one's own: `fun({parameter: value}, {input: [n]}) -> [n]` in jax.numpy, inputs as they stand in the
    table. `parameters`: the range that starts are drawn from; those of `positive` are fitted (and drawn) by their
    logarithm.

    Raises:
        UsageError: a range that is none, or one of a positive parameter that reaches 0.
    """
    for name, (low, high) in parameters.items():
        if not low < high or (name in positive and low <= 0):
            raise UsageError(f"the range of {name!r} is ({low}, {high}); low < high was wanted, above 0 where positive")
    for name in positive:
        if name not in parameters:
            raise UnknownNameError("parameter", name, parameters)
    names = tuple(parameters)

    def natural(t: Any, _: Mapping[str, float]) -> Natural:
        return {name: jnp.exp(t[k]) if name in positive else t[k] for k, name in enumerate(names)}

    def coordinates(p: Natural, _: Mapping[str, float]) -> Any:
        return jnp.stack([jnp.log(p[name]) if name in positive else jnp.asarray(p[name]) for name in names])

    made = []
    for name, (low, high) in parameters.items():
        low, high = (float(jnp.log(low)), float(jnp.log(high))) if name in positive else (low, high)
        made.append(Parameter(name, low, high))
    return Form(f"{fun.__module__}:{fun.__qualname__}", "your own", inputs, tuple(made), natural, coordinates,
                "yours", value=lambda t, x: fun(natural(t, {}), x), raw=inputs)  # fmt: skip


def form_of(form: Form | str) -> Form:
    """By name, by `pkg.module:name` (a Form, or a function that returns one), or itself.

    Raises:
        UnknownNameError, UsageError
    """
    if isinstance(form, Form):
        return form
    if ":" in form:
        found = resolve(form)
        found = found if isinstance(found, Form) else found() if callable(found) else found
        if not isinstance(found, Form):
            raise UsageError(f"{form!r} gave a {type(found).__name__}; a Form was wanted: uimjax.scaling.own(...)")
        return found
    if form not in FORMS:
        raise UnknownNameError("form", form, FORMS)
    return FORMS[form]()
