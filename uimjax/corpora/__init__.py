"""Built-in corpora, files, and plants: causes of failure put into training data, with truth ids."""

from uimjax.corpora.base import Corpus
from uimjax.corpora.digits import digits
from uimjax.corpora.files import read_rows
from uimjax.corpora.plants import Backdoor, Planted, backdoor

__all__ = ["Backdoor", "Corpus", "Planted", "backdoor", "digits", "read_rows"]
