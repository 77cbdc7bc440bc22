"""Every flag of the program: kinds of values (`values`), the table of flags (`table`), the command line."""

from flags.table import BY_NAME, FLAGS, complete, flatten, nest
from flags.values import from_text

__all__ = ["BY_NAME", "FLAGS", "complete", "flatten", "from_text", "nest"]
