from .runs import Run as Run
from .runs import StageRecord as StageRecord
from .runs import open_run as open_run
