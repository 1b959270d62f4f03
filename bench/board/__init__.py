"""What a board shows, from the store alone: rankings, matrices, flags, curves; no torch."""

from bench.board.boards import Board, boards, find
from bench.board.detection import Detection, Rejection, Roc
from bench.board.entry import Curve, Entry, Point, entry
from bench.board.matrix import Square, matrix
from bench.board.ranking import ClaimCheck, Coverage, Proof, Row, ranking
from bench.board.report import report
from bench.board.signs import Flag

__all__ = [
    "Board", "ClaimCheck", "Coverage", "Curve", "Detection", "Entry", "Flag", "Point", "Proof",
    "Rejection", "Roc", "Row", "Square", "boards", "entry", "find", "matrix", "ranking", "report",
]  # fmt: skip
