"""Configs: defaults live here, YAML holds differences, flags override; an unknown key is refused with the nearest."""

from uimjax.config.base import LOCK, TrainChoice, parse, read_yaml
from uimjax.config.kinds import KINDS, OWN, STORIES, commented, kind_of
from uimjax.config.mends import MendConfig
from uimjax.config.own import (
    AuditConfig,
    CensusConfig,
    CheckConfig,
    ClassifiedConfig,
    DecisionsConfig,
    ExaminedConfig,
    FailuresConfig,
    IndexConfig,
    TraceConfig,
)
from uimjax.config.stories import DemoConfig, MitigateChoice, RunConfig, TextConfig, TraceChoice
from uimjax.config.studies import NoiseConfig, SweepConfig
from uimjax.config.suites import Plan, SuiteConfig, VisionSuiteChoice, quick
from uimjax.config.tunings import TuneConfig

__all__ = [
    "KINDS", "LOCK", "OWN", "STORIES", "AuditConfig", "CensusConfig", "CheckConfig", "ClassifiedConfig",
    "DecisionsConfig", "DemoConfig", "ExaminedConfig", "FailuresConfig", "IndexConfig", "MendConfig", "MitigateChoice",
    "NoiseConfig",
    "Plan", "RunConfig", "SuiteConfig", "SweepConfig", "TextConfig", "TraceChoice", "TraceConfig", "TrainChoice",
    "TuneConfig", "VisionSuiteChoice", "commented", "kind_of", "parse", "quick", "read_yaml",
]  # fmt: skip
