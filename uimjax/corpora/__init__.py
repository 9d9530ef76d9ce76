"""Built-in corpora, files, and plants: causes of failure put into training data, with truth ids."""

from uimjax.corpora.base import Corpus
from uimjax.corpora.documents import Document, Source, TextCorpus, check_sources, digest_documents, read_folder
from uimjax.corpora.files import read_rows
from uimjax.corpora.handwritten import digits
from uimjax.corpora.library import stdlib, text_corpus
from uimjax.corpora.plants import Backdoor, Planted, backdoor
from uimjax.corpora.text_plants import Behaviour, PlantedText, Secret, plant_text

__all__ = [
    "Backdoor", "Behaviour", "Corpus", "Document", "Planted", "PlantedText", "Secret", "Source", "TextCorpus",
    "backdoor", "check_sources", "digest_documents", "digits", "plant_text", "read_folder", "read_rows", "stdlib",
    "text_corpus",
]  # fmt: skip
