from align.context import *  # noqa
