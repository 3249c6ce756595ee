"""The Edit, its parts, and its files."""

from .edit import Edit as Edit
from .hashes import tensor_hash as tensor_hash
from .parts import LowRank as LowRank
from .parts import Part as Part
from .parts import Replace as Replace
