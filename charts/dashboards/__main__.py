"""Write the dashboards into the chart; what is there and no longer made is removed."""

from pathlib import Path

from charts.dashboards.all_boards import BOARDS
from charts.dashboards.board import to_json

FOLDER = Path(__file__).parents[1] / "rljob" / "dashboards"


def main() -> None:
    """Entry point."""
    wanted = {f"{board.name}.json": to_json(board) for board in BOARDS}
    for path in FOLDER.glob("*.json"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
