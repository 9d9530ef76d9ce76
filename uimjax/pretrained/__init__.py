"""Models of others, from a Hugging Face folder and back: `load`, `save`."""

from uimjax.pretrained.loading import Pretrained, load
from uimjax.pretrained.saving import save

__all__ = ["Pretrained", "load", "save"]
