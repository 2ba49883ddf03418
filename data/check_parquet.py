"""Verify every row of parquet files, and leave a report and a contact sheet.

    python data/check_parquet.py FILE [FILE ...] [--out_dir DIR] [-j N]

Exit code 1 if a row cannot be used for training.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from utils.errors import InputError, UsageError, run
from utils.flags import ArgumentParser, at_least, make_folder
from utils.text import counted

SHOWN = 20  # findings printed; the report has all


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Verify every row of parquet files in the MM-RIS schema.",
        epilog="Exit code 1 if a row or file cannot be used, or, with --strict, if there are warnings.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="parquet file, or a folder of them, which then count "
                        "as one data set; images shared by two data sets are reported")
    parser.add_argument("--out_dir", default="./runs/check", metavar="DIR",
                        help="folder for report.json and contact_sheet.png (default: %(default)s)")
    parser.add_argument("--samples", type=at_least(0), default=12, metavar="N",
                        help="rows on the contact sheet, evenly spaced; 0: no sheet (default: %(default)s)")
    parser.add_argument("-j", "--workers", type=at_least(0), default=min(8, os.cpu_count() or 1), metavar="N",
                        help="worker processes that decode; 0: decode in this process "
                             "(default: one per core, at most 8)")
    parser.add_argument("--strict", action="store_true", help="exit with code 1 for warnings, too")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    for path in args.files:
        if not os.path.exists(path):
            raise UsageError(f"{path}: there is no such file or folder")
    make_folder(args.out_dir, "--out_dir")

    from data.prepare.check_report import THUMBNAIL, summary, write_report, write_sheet
    from data.prepare.checking import Checker
    from data.prepare.row_checks import ERROR

    checker = Checker(args.files, args.workers, args.samples, THUMBNAIL)
    checker.run()
    findings = sorted(checker.findings, key=lambda found: found.problem.severity != ERROR)  # errors first
    for found in findings[:SHOWN]:
        print(f"{found.problem.severity}: {found}")
    if len(findings) > SHOWN:
        print(f"and {len(findings) - SHOWN} more")
    print(f"\n{summary(checker.sets)}\n")
    report = os.path.join(args.out_dir, "report.json")
    write_report(report, checker)
    print(f"wrote {report}")
    sheet = os.path.join(args.out_dir, "contact_sheet.png")
    if checker.samples:
        write_sheet(sheet, checker.samples)
        print(f"wrote {sheet}")
    errors = sum(found.problem.severity == ERROR for found in findings)
    if errors:
        raise InputError(f"{counted(errors, 'problem')} with rows or files that cannot be used; {report} lists them")
    if args.strict and findings:
        raise InputError(f"{counted(len(findings), 'warning')}; {report} lists them")


if __name__ == "__main__":
    run(main)
