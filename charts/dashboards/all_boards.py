"""The dashboards of the chart."""

from charts.dashboards import fleet, learning, retriever, throughput
from charts.dashboards.board import Board

BOARDS: tuple[Board, ...] = (fleet.BOARD, learning.BOARD, throughput.BOARD, retriever.BOARD)
