"""Verify every row of parquet files, and leave a report and a contact sheet.

    python data/check_parquet.py FILE [FILE ...] [--out_dir DIR] [--img_size S] [--bert_tokenizer DIR] [-j N]

Exit code 1 if a row cannot be used for training.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from utils.errors import InputError, UsageError, naming, run
from utils.flags import ArgumentParser, at_least, image_size, make_folder
from utils.locations import exists
from utils.text import counted

SHOWN = 20  # findings printed; the report has all


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Verify every row of parquet files in the MM-RIS schema.",
        epilog="Exit code 1 if a row or file cannot be used, or, with --strict, if there are warnings.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="parquet file, or a folder of them, which then count "
                        "as one data set; or the URL of either; images shared by two data sets are reported")
    parser.add_argument("--out_dir", default="./runs/check", metavar="DIR",
                        help="folder for report.json and contact_sheet.png (default: %(default)s)")
    parser.add_argument("--img_size", type=image_size, default=480, metavar="S", help="side of the networks' input in "
                        "pixels, to say how large the objects are for them (default: %(default)s)")
    parser.add_argument("--bert_tokenizer", metavar="DIR", help="folder with BERT's vocabulary, to count the "
                        "expressions that are cut because they have too many word pieces (default: not counted)")
    parser.add_argument("--samples", type=at_least(0, most=1000), default=12, metavar="N",
                        help="rows on the contact sheet, evenly spaced; 0: no sheet (default: %(default)s)")
    parser.add_argument("-j", "--workers", type=at_least(0, most=1024), metavar="N",
                        default=min(8, os.cpu_count() or 1), help="worker processes that decode; 0: decode in this "
                        "process (default: one per core, at most 8)")
    parser.add_argument("--strict", action="store_true", help="exit with code 1 for warnings, too")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    for path in args.files:
        if not exists(path):
            raise UsageError(f"{path}: there is no such file or folder")
    make_folder(args.out_dir, "--out_dir")
    report, sheet = (os.path.join(args.out_dir, name) for name in ("report.json", "contact_sheet.png"))

    from bert import Tokenizer
    from data.prepare.check_report import THUMBNAIL, conclusions, summary, write_report, write_sheet
    from data.prepare.checking import Checker
    from data.prepare.outputs import check_outputs
    from data.prepare.row_checks import ERROR

    with naming("bert_tokenizer"):
        tokenizer = Tokenizer(args.bert_tokenizer) if args.bert_tokenizer else None
    checker = Checker(args.files, args.workers, args.samples, THUMBNAIL, tokenizer)
    check_outputs([report, sheet], [file for data in checker.sets for file in data.files], "out_dir")
    checker.run()
    write_report(report, checker)
    if checker.samples:
        write_sheet(sheet, checker.samples)
    findings = sorted(checker.findings, key=lambda found: found.problem.severity != ERROR)  # errors first
    for found in findings[:SHOWN]:
        print(f"{found.problem.severity}: {found}")
    if len(findings) > SHOWN:
        print(f"and {len(findings) - SHOWN} more")
    print(f"\n{summary(checker.sets)}\n")
    for sentence in conclusions(checker.sets, args.img_size):
        print(f"{sentence}\n")
    print(f"wrote {report}" + f"\nwrote {sheet}" * bool(checker.samples))
    errors = sum(found.problem.severity == ERROR for found in findings)
    if errors:
        raise InputError(f"{counted(errors, 'problem')} with rows or files that cannot be used; {report} lists them")
    if args.strict and findings:
        raise InputError(f"{counted(len(findings), 'warning')}; {report} lists them")


if __name__ == "__main__":
    run(main)
