"""Evaluation: what a compressed model lost, against the original on the same tokens."""

from llmc.eval.comparison import Comparison
from llmc.eval.evaluation import beside, evaluate
from llmc.eval.loading import open_model
from llmc.eval.report import EvalReport
from llmc.eval.subject import Opener

__all__ = ["Comparison", "EvalReport", "Opener", "beside", "evaluate", "open_model"]
