"""Scaling laws: forms, fits with honest intervals, predictions, allocations, and the sweeps that feed them."""

from uimjax.understand.scaling.base import Fit, Form, Objective
from uimjax.understand.scaling.fits import fit
from uimjax.understand.scaling.forms import FORMS, own
from uimjax.understand.scaling.intervals import bootstrap, profile
from uimjax.understand.scaling.isoflops import isoflop
from uimjax.understand.scaling.ladder import predict_score, two_stage
from uimjax.understand.scaling.ledger import Swept
from uimjax.understand.scaling.networks import Labelled, Tokens
from uimjax.understand.scaling.saved import load, save
from uimjax.understand.scaling.sweeps import sweep
from uimjax.understand.scaling.using import allocate, holdout, predict

__all__ = [
    "FORMS", "Fit", "Form", "Labelled", "Objective", "Swept", "Tokens", "allocate", "bootstrap", "fit", "holdout",
    "isoflop", "load", "own", "predict", "predict_score", "profile", "save", "sweep", "two_stage",
]  # fmt: skip
