"""Sentences of the risk register and of the page in plain words, by language; they stand in `phrases*.yaml`."""

from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).parent
PHRASES: dict[str, dict[str, Any]] = {
    "en": yaml.safe_load((_HERE / "phrases.yaml").read_text(encoding="utf-8")),
    "zh": yaml.safe_load((_HERE / "phrases.zh.yaml").read_text(encoding="utf-8")),
}
