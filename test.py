"""Evaluate a RIS-FUSION checkpoint: metrics, and fused images, masks and overlays at original size."""
import argparse
import copy
import logging
import os
import sys

from utils.errors import UsageError, run
from utils.flags import (
    ArgumentParser,
    add_checkpoint_flags,
    at_least,
    make_folder,
    require_existing,
    resolve,
    thresholds,
)

SHEET_ROWS = 8
RESULTS = r"fusion|Binary|Overlay|GT|contact_sheet\.png|metrics\.json|per_sample\.csv|report\.html"
# What the figures rest on; what they do not depend on, such as --out_dir and -b, stays out.
SETTINGS = ("ckpt", "test_parquet", "img_size", "mha", "shuffle_text", "tta", "amp", "limit", "bad_rows", "seed")

log = logging.getLogger("test")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    parser.add_argument("--ckpt", required=True, default=argparse.SUPPRESS, help="checkpoint to evaluate")
    parser.add_argument("--test_parquet", default="./data/mm_ris_test.parquet", help="parquet file, or folder of them")
    parser.add_argument("--out_dir", default="./your_output_dir", help="folder for everything written")
    add_checkpoint_flags(parser)
    parser.add_argument("-b", "--batch-size", type=at_least(1), default=8, help="samples in a forward pass")
    parser.add_argument("-j", "--workers", type=at_least(0), default=4, help="processes that load data; 0: none")
    parser.add_argument("--device", default="auto", help="auto, cuda, npu or cpu; an index may follow, as in cuda:1")
    parser.add_argument("--iou_thresholds", type=thresholds, default="0.5,0.6,0.7,0.8,0.9", help="the t of precision@t")
    parser.add_argument("--fusion_metrics", action="store_true",
                        help="measure the fused images, and the sources' average and maximum, by EN, SD, SF, AG, MI, "
                             "SCD, CC, Qabf, VIF and SSIM at original size")
    parser.add_argument("--text_ablation", action="store_true",
                        help="also run each sample with another's sentence and with an empty one: does the text steer?")
    parser.add_argument("--shuffle_text", action="store_true",
                        help="swap the sentences between samples, to see how much the model listens to them")
    parser.add_argument("--tta", choices=["none", "flip"], default="none",
                        help="flip: average with the mirrored images, left and right exchanged in the sentences")
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    parser.add_argument("--torchcompile", action="store_true",
                        help="compile the model with torch.compile; the first batch takes minutes")
    parser.add_argument("--save", choices=["none", "masks", "all"], default="all",
                        help="pictures written for each sample: none, masks (Binary/) or all")
    parser.add_argument("--limit", type=at_least(0), default=0, metavar="N", help="only the first N rows; 0: all")
    parser.add_argument("--bad_rows", choices=["stop", "skip"], default="stop",
                        help="rows that cannot be used: stop at the first, or skip and list them")
    parser.add_argument("--dist-timeout", type=at_least(0.01, float), default=10.0,
                        help="minutes until a process that does not answer ends a job of several")
    parser.add_argument("--seed", type=at_least(0), default=0,
                        help="of the swapped sentences and of the bootstrap intervals")
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    if args.text_ablation and args.shuffle_text:
        parser.error("argument --text_ablation: it swaps the sentences itself; leave out --shuffle_text")
    require_existing(args, "ckpt", "test_parquet")

    # After the command line is known to be good: these take seconds.
    from utils import distributed
    from utils.device import keep_freed_memory, select_device
    from utils.workers import end_workers

    device = select_device(args.device, distributed.local_rank())
    keep_freed_memory(device)
    distributed.start(device, args.dist_timeout)
    logging.basicConfig(level=logging.INFO if distributed.rank() == 0 else logging.ERROR, format="%(message)s",
                        stream=sys.stdout)
    try:
        with distributed.peers_watched(args.dist_timeout):
            test(args, device)
    finally:
        end_workers()
    distributed.stop()


def test(args: argparse.Namespace, device) -> None:
    """Evaluate, this process its share of the rows, and leave the results in `--out_dir`."""
    import torch

    from data import MMRISDataset, collate, share
    from engine import INPUTS, evaluate
    from evaluation import ablation, fusion_metrics, report
    from evaluation.metrics import sample_iou, usable_rows
    from evaluation.results import ResultWriter, write_json, write_samples
    from utils import distributed
    from utils.draw import SampleSheet
    from utils.files import set_aside
    from utils.workers import leave_signals_to_the_parent

    main_process = distributed.rank() == 0
    model, tokenizer = load(args, device)
    make_folder(args.out_dir, "--out_dir")
    dataset = MMRISDataset(args.test_parquet, tokenizer, args.img_size, originals=True,
                            lumas=args.fusion_metrics, bad_rows=args.bad_rows)
    if args.shuffle_text:
        dataset.shuffle_text(args.seed)
    rows = torch.utils.data.Subset(dataset, range(min(args.limit or len(dataset), len(dataset))))
    loader = torch.utils.data.DataLoader(
        rows, batch_size=args.batch_size, num_workers=args.workers, collate_fn=collate,
        sampler=share(len(rows), distributed.rank(), distributed.world_size()),
        worker_init_fn=leave_signals_to_the_parent)

    def with_sentences(batch, sentences):
        batch = batch | dict(zip(("input_ids", "attention_mask"), tokenizer(sentences), strict=True))
        return model(*(batch[name].to(device) for name in INPUTS))

    takers = [sheet := SampleSheet(dataset.questions, SHEET_ROWS)]
    if args.fusion_metrics:
        takers.append(meter := fusion_metrics.FusionMeter(len(rows)))
    if args.text_ablation:
        swapped = copy.copy(dataset)
        swapped.shuffle_text(args.seed)
        takers.append(text := ablation.TextAblation(swapped.questions, with_sentences))
    if main_process:
        set_aside(args.out_dir, RESULTS)
    distributed.wait_for_all()  # nobody writes before there is room
    takers.append(ResultWriter(args.out_dir, dataset.names, dataset.indices, args.save))

    def show(row):
        """A panel of the report; the model runs once more, since nobody knew before that this row would be wanted."""
        sample = collate([dataset[row]])
        alone = SampleSheet(dataset.questions, len(dataset))
        with torch.inference_mode():
            alone.add(sample, with_sentences(sample, [dataset.questions[row]]))
        pictures, = (pictures for _, pictures in alone.rows)
        return report.panel(dataset.questions[row], float(sample_iou(counts[[row]])), dataset.indices[row],
                            dataset.names[row], pictures, sample["size"][0])

    def keep(batch, output):
        for taker in takers:
            taker.add(batch, output)

    bad = []
    metrics, counts = evaluate(model, loader, device, args.iou_thresholds, keep, bad)

    # From here on everything is made of numbers by row: `counts`, and what `meter` and `text` hold.
    if args.fusion_metrics:
        meter.values = distributed.total(meter.values)
    if args.text_ablation:
        text.counts, text.change = distributed.total(text.counts), distributed.total(text.change)
    sheet.rows = distributed.joined(sheet.rows)
    if not main_process:
        return
    evaluated = usable_rows(counts)
    results = metrics | context(args, device, dataset, counts, bad)
    if args.fusion_metrics:
        results["fusion_metrics"] = meter.summary(evaluated)
    if args.text_ablation:
        results["text_ablation"] = text.summary(counts, evaluated)
    iou = sample_iou(counts[evaluated]).numpy()
    chosen = {kind: [show(row) for row in some] for kind, some in report.pick_samples(iou, evaluated.numpy()).items()}

    sheet.save(os.path.join(args.out_dir, "contact_sheet.png"))
    write_samples(os.path.join(args.out_dir, "per_sample.csv"), dataset, counts,
                  meter.columns() if args.fusion_metrics else None)
    write_json(os.path.join(args.out_dir, "metrics.json"), results)
    report.write_report(os.path.join(args.out_dir, "report.html"), results, iou, chosen)
    announce(args, results)


def load(args: argparse.Namespace, device):
    """The model of `--ckpt` on `device`, as the flags want it run, and its tokenizer; also completes `args`."""
    import torch

    from bert import Tokenizer, check_vocabulary
    from models import build_from_checkpoint
    from models.inference import Inference, prepare_for_inference
    from models.tta import left_right_ids
    from utils import checkpoint
    from utils.device import compile_mode, warn_if_slow

    content = checkpoint.read(args.ckpt, "--ckpt")
    resolve(args, checkpoint.stored_args(content))
    tokenizer = Tokenizer(args.bert_tokenizer)
    try:
        model = build_from_checkpoint(content, args.ckpt, args.ck_bert, args.mha)
    except ValueError as error:
        raise UsageError(f"--mha: {error}") from error
    check_vocabulary(tokenizer, model.text_encoder)
    flip = args.tta == "flip"
    left_right = left_right_ids(tokenizer)
    if flip and left_right is None:
        log.warning("--tta flip: %s has not both `left` and `right` as words; sentences with them keep them, though "
                    "the mirrored image has them the other way round", args.bert_tokenizer)
    amp_dtype = torch.bfloat16 if args.amp else None
    warn_if_slow(device, amp_dtype)
    prepare_for_inference(model, device, amp_dtype, args.torchcompile)
    return Inference(model, flip, left_right, amp_dtype, compile_mode(device) if args.torchcompile else None), tokenizer


def context(args: argparse.Namespace, device, dataset, counts, bad: list[str]) -> dict:
    """What `metrics.json` says about its metrics: how sure they are, how they were made, and what was left out."""
    import torch

    from evaluation import bootstrap
    from evaluation.metrics import usable_rows

    rows = usable_rows(counts)
    images = [dataset.names[row] for row in rows.tolist()]
    ratios = bootstrap.segmentation_ratios(*counts[rows, :2].T.numpy(), args.iou_thresholds)
    return {"intervals_95": bootstrap.percent_intervals(ratios, images, args.seed),
            "bootstrap": {"resamples": bootstrap.RESAMPLES, "images": len(set(images)), "seed": args.seed},
            "settings": {name: getattr(args, name) for name in SETTINGS} | {
                "device": device.type, "torch": torch.__version__},
            "bad_rows": {"count": len(bad), "messages": bad}}


def announce(args: argparse.Namespace, results: dict) -> None:
    """Print the results and where they are."""
    from evaluation import ablation, fusion_metrics
    from evaluation.metrics import table
    from evaluation.results import FOLDERS
    from utils.text import counted

    print(f"{args.test_parquet}, sentences swapped between samples" if args.shuffle_text else args.test_parquet)
    plain = {name: value for name, value in results.items() if isinstance(value, int | float)}
    print(table(plain, results["intervals_95"]))
    images = counted(results["bootstrap"]["images"], "image")
    print(f"in brackets: 95% intervals, {results['bootstrap']['resamples']} bootstrap resamples of {images}")
    if args.text_ablation:
        print(f"\n{ablation.table(results['text_ablation'])}")
        print("change of the fused image against that of the true sentence, inside and outside the object, of 255")
    if args.fusion_metrics:
        print(f"\n{fusion_metrics.table(results['fusion_metrics'])}")
    if results["bad_rows"]["count"]:
        print(f"\n{counted(results['bad_rows']['count'], 'row')} left out:", *results["bad_rows"]["messages"], sep="\n")
    folders = "".join(f", {folder}/" for folder in FOLDERS[args.save])
    print(f"in {args.out_dir}: metrics.json, per_sample.csv, report.html, contact_sheet.png{folders}")


if __name__ == "__main__":
    run(main)
