"""The results of bench_gpu.py: printed, and written to gpu.json and gpu.md, whenever a row is there."""
import itertools
import json
import os

from tables import markdown_table, written

from utils.files import replacing

from .plan import DEVICE, PARTS

OK, WRONG, FAILED, LEFT_OUT = "ok", "wrong", "failed", "left out"


class Report:
    """Collects rows; each is on the disk before the next is measured.

    Args:
        folder: for the two files.
        settings: of the run, by name.
    """

    def __init__(self, folder: str, settings: dict):
        self.folder, self.settings = folder, settings
        self.rows: list[dict] = []
        self.ended = "still running, or ended without a word"

    def add(self, part: str, row: str, state: str, seconds: float = 0.0, *, figures: dict | None = None,
            tables: dict[str, dict] | None = None, why: str = "") -> None:
        """Note a row.

        Args:
            part: of PARTS, or DEVICE.
            state: OK; WRONG, a check that does not hold; FAILED; or LEFT_OUT.
            seconds: that it took.
            figures: numbers and words by name.
            tables: title → {"head": [...], "rows": [[...], ...]}.
            why: the state is not OK.
        """
        entry = {"part": part, "row": row, "state": state, "seconds": round(seconds, 2), "figures": figures or {},
                 "tables": tables or {}, "why": why}
        self.rows.append(entry)
        self.write()
        said = [f"{name} {written(value)}" for name, value in entry["figures"].items()]
        print(f"[{part}] {row}: {'; '.join([*([f'{state}: {why}'] if why else []), *said]) or state}", flush=True)
        for title, table in entry["tables"].items():
            print(f"  {title}\n  " + markdown_table(table["head"], table["rows"]).replace("\n", "\n  "), flush=True)

    def figures(self, part: str) -> dict[str, dict]:
        """The figures of the rows of a part that are in order, by row."""
        return {row["row"]: row["figures"] for row in self.rows if row["part"] == part and row["state"] == OK}

    def finish(self, how: str) -> None:
        """Say how the run ended."""
        self.ended = how
        self.write()

    def in_order(self) -> bool:
        """Whether no row failed and every check holds."""
        return all(row["state"] in (OK, LEFT_OUT) for row in self.rows)

    def write(self) -> None:
        """Replace both files.

        Raises:
            InputError: they cannot be written.
        """
        content = {"settings": self.settings, "ended": self.ended, "rows": self.rows}
        with (replacing(os.path.join(self.folder, "gpu.json"), durable=False) as path,
              open(path, "w", encoding="utf-8") as file):
            json.dump(content, file, indent=1)
        with (replacing(os.path.join(self.folder, "gpu.md"), durable=False) as path,
              open(path, "w", encoding="utf-8") as file):
            file.write(self.markdown())

    def markdown(self) -> str:
        """The report for people."""
        blocks = ["# Measurements", f"Settings: {_listed(self.settings)}. The run: {self.ended}."]
        for part, title in {DEVICE: "Device", **PARTS}.items():
            rows = [row for row in self.rows if row["part"] == part]
            if not rows:
                continue
            blocks.append(f"## {title}")
            measured = [row for row in rows if row["figures"]]
            for names, group in itertools.groupby(measured, lambda row: list(row["figures"])):
                blocks.append(markdown_table(["row", "", *names], [
                    [row["row"], row["state"], *row["figures"].values()] for row in group]))
            for row in rows:
                blocks += [f"{row['row']}, {title}:\n\n{markdown_table(table['head'], table['rows'])}"
                           for title, table in row["tables"].items()]
            if notes := [f"- {row['row']}: {row['state']}: {row['why']}" for row in rows if row["why"]]:
                blocks.append("\n".join(notes))
        return "\n\n".join(blocks) + "\n"


def _listed(values: dict) -> str:
    return ", ".join(f"{name} {written(value)}" for name, value in values.items())
