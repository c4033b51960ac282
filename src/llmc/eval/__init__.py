"""Evaluation: what a compressed model lost, against the original on the same tokens."""

from llmc.eval.evaluation import Opener, evaluate
from llmc.eval.loading import open_model
from llmc.eval.report import EvalReport

__all__ = ["EvalReport", "Opener", "evaluate", "open_model"]
