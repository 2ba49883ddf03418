"""A whole evaluation of a checkpoint: metrics, tables, pictures and a report.

`args` is the command line of `test.py` throughout, complete and checked.
"""
import copy
import functools
import os
from argparse import Namespace

import torch
from torch.utils.data import Subset

from data import MMRISDataset, collate, evaluation_loader
from engine import INPUTS, evaluate
from evaluation import ablation, bootstrap, fusion_metrics, report
from evaluation.inference import OpenCheckpoint, open_checkpoint
from evaluation.metrics import sample_iou, table, usable_rows
from evaluation.results import FOLDERS, ResultWriter, write_json, write_samples
from utils import distributed
from utils.device import select_device
from utils.draw import SampleSheet
from utils.errors import naming
from utils.files import set_aside
from utils.flags import make_folder
from utils.text import counted

SHEET_ROWS = 8
RESULTS = r"fusion|Binary|Overlay|GT|contact_sheet\.png|metrics\.json|per_sample\.csv|report\.html"
# What the figures depend on; --out_dir, -b and the like are not among it.
SETTINGS = ("ckpt", "test_parquet", "img_size", "mha", "shuffle_text", "tta", "amp", "limit", "bad_rows", "seed")


def run_job(args: Namespace) -> None:
    """Evaluate, as this process of one or several.

    Raises:
        UsageError, InputError: what cannot be carried out, in one sentence.
    """
    device = select_device(args.device, distributed.local_rank())
    with distributed.job(device, args.dist_timeout):
        test(args, device)


def test(args: Namespace, device: torch.device) -> None:
    """Evaluate this process's share of the rows, and leave the results of all in `--out_dir`."""
    opened = open_model(args, device)
    make_folder(args.out_dir, "--out_dir")
    dataset = open_data_set(args, opened)
    rows = Subset(dataset, range(min(args.limit or len(dataset), len(dataset))))
    loader = evaluation_loader(rows, args.batch_size, workers=args.workers)
    ask = functools.partial(answer, opened, device)

    # Evaluate
    sheet = SampleSheet(dataset.questions, SHEET_ROWS)
    meter = fusion_metrics.FusionMeter(len(rows)) if args.fusion_metrics else None
    text = ablation.TextAblation(swapped(dataset, args.seed).questions, ask) if args.text_ablation else None
    if distributed.rank() == 0:
        set_aside(args.out_dir, RESULTS)
    distributed.wait_for_all()  # no process writes before the earlier results are out of the way
    writer = ResultWriter(args.out_dir, dataset.names, dataset.indices, args.save)
    collectors = [collector for collector in (sheet, meter, text, writer) if collector is not None]

    def on_batch(batch, output):
        for collector in collectors:
            collector.add(batch, output)

    bad_rows = []
    metrics, counts = evaluate(opened.model, loader, device, args.iou_thresholds, on_batch, bad_rows)

    # Gather
    for collector in (sheet, meter, text):
        if collector is not None:
            collector.gather()
    if distributed.rank() > 0:
        return
    evaluated = usable_rows(counts)
    results = metrics | describe(args, opened, device, dataset, counts, bad_rows)
    if meter:
        results["fusion_metrics"] = meter.summary(evaluated)
    if text:
        results["text_ablation"] = text.summary(counts, evaluated)

    # Write: numbers, then pictures
    write_samples(os.path.join(args.out_dir, "per_sample.csv"), dataset, counts, meter.columns() if meter else None)
    write_json(os.path.join(args.out_dir, "metrics.json"), results)
    sheet.save(os.path.join(args.out_dir, "contact_sheet.png"))
    iou = sample_iou(counts[evaluated]).numpy()
    panels = {kind: [panel(dataset, row, counts, ask) for row in chosen]
              for kind, chosen in report.pick_samples(iou, evaluated.numpy()).items()}
    report.write_report(os.path.join(args.out_dir, "report.html"), results, iou, panels)
    print_results(args, results)


def open_model(args: Namespace, device: torch.device) -> OpenCheckpoint:
    """The checkpoint of `--ckpt`, run as the flags want it."""
    given = {name: getattr(args, name, None) for name in ("bert_tokenizer", "ck_bert", "img_size", "mha")}
    with naming("ckpt"):
        return open_checkpoint(args.ckpt, device, flip=args.tta == "flip", amp=args.amp, compiled=args.torchcompile,
                               keep_memory=True, **given)


def open_data_set(args: Namespace, opened: OpenCheckpoint) -> MMRISDataset:
    """The rows to evaluate, with `--shuffle_text` with their sentences swapped."""
    dataset = MMRISDataset(args.test_parquet, opened.tokenizer, opened.img_size, originals=True,
                           lumas=args.fusion_metrics, bad_rows=args.bad_rows, exact=True)
    return swapped(dataset, args.seed) if args.shuffle_text else dataset


def swapped(dataset: MMRISDataset, seed: int) -> MMRISDataset:
    """The same rows with their sentences swapped."""
    other = copy.copy(dataset)
    other.shuffle_text(seed)
    return other


@torch.inference_mode()
def answer(opened: OpenCheckpoint, device: torch.device, batch: dict, sentences: list[str]):
    """The model's output for a batch with other sentences."""
    batch = batch | dict(zip(("input_ids", "attention_mask"), opened.tokenizer(sentences), strict=True))
    return opened.model(*(batch[name].to(device) for name in INPUTS))


def panel(dataset: MMRISDataset, row: int, counts: torch.Tensor, ask) -> dict:
    """A row's panel in the report. The model runs once more: only now is it known which rows are shown."""
    question = dataset.questions[row]
    sample = collate([dataset[row]])
    sheet = SampleSheet(dataset.questions, len(dataset))
    sheet.add(sample, ask(sample, [question]))
    (_, pictures), = sheet.rows
    return report.panel(question, float(sample_iou(counts[[row]])), dataset.indices[row], dataset.names[row], pictures,
                        sample["size"][0])


def describe(args: Namespace, opened: OpenCheckpoint, device: torch.device, dataset: MMRISDataset,
             counts: torch.Tensor, bad_rows: list[str]) -> dict:
    """What `metrics.json` says about its metrics: how sure they are, how they were made, and what was left out."""
    rows = usable_rows(counts)
    images = [dataset.names[row] for row in rows.tolist()]
    ratios = bootstrap.segmentation_ratios(*counts[rows, :2].T.numpy(), args.iou_thresholds)
    settings = vars(args) | {"img_size": opened.img_size, "mha": opened.mha}
    return {"intervals_95": bootstrap.percent_intervals(ratios, images, args.seed),
            "bootstrap": {"resamples": bootstrap.RESAMPLES, "images": len(set(images)), "seed": args.seed},
            "settings": {name: settings[name] for name in SETTINGS} | {
                "device": device.type, "torch": torch.__version__},
            "bad_rows": {"count": len(bad_rows), "messages": bad_rows}}


def print_results(args: Namespace, results: dict) -> None:
    """Print the results and where they are."""
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
