"""A whole evaluation of a checkpoint: metrics, tables, pictures and a report.

`args` is the complete and checked command line of `test.py` throughout.
"""
import contextlib
import copy
import functools
import os
from argparse import Namespace

import numpy as np
import torch
from torch.utils.data import Subset

from bert import MAX_TOKENS
from data import MMRISDataset, collate, evaluation_loader
from data.fused_pictures import match_rows
from engine import evaluate
from evaluation import ablation, bootstrap, fusion_metrics, report
from evaluation.full_size import FullSizeFuser
from evaluation.inference import OpenCheckpoint, open_checkpoint
from evaluation.metrics import metrics_table, no_target_metrics, sample_iou, usable_rows
from evaluation.ratios import generalised_scores, segmentation_ratios, share
from evaluation.results import FOLDERS, ResultWriter, reserve, write_json, write_samples
from evaluation.sample_notes import SampleNotes
from models import inputs_of
from utils import distributed
from utils.device import select_device
from utils.draw import SampleSheet, sample_pictures, to_image
from utils.errors import InputError, UsageError, naming
from utils.files import set_aside
from utils.flags import checkpoint_flags, make_folder
from utils.text import counted, printable

SHEET_ROWS = 8
ROOM, ROOM_OF_ROW = 2**17, 2**9  # bytes, enough for metrics.json and per_sample.csv
MOST_INDICES = 20  # in a printed line
LONGEST_PATH = 4096  # characters
RESULTS = r"fusion|Binary|Overlay|GT|contact_sheet\.png|metrics\.json|per_sample\.csv|report\.html"
# Settings on which the figures depend, unlike --out_dir, -b and the like.
SETTINGS = ("ckpt", "test_parquet", "img_size", "mha", "shuffle_text", "tta", "amp", "fuse_size", "limit", "bad_rows",
            "seed")


def run_job(args: Namespace) -> None:
    """Evaluate, as this process of one or several.

    Raises:
        UsageError, InputError: what cannot be done, in one sentence.
    """
    device = select_device(args.device, distributed.local_rank())
    with distributed.job(device, args.dist_timeout):
        test(args, device)


def test(args: Namespace, device: torch.device) -> None:
    """Evaluate this process's share of the rows, and write the results of all processes to `--out_dir`.

    Raises:
        InputError: a file could not be written. The others are written and the figures printed before.
    """
    opened = open_model(args, device)
    if args.fuse_size != "network" and opened.fusion_method == "given":
        raise UsageError("the checkpoint fuses nothing (--prefusion_model given), so leave it out", "fuse_size")
    make_folder(args.out_dir, "--out_dir")
    dataset = open_data_set(args, opened)
    rows = Subset(dataset, range(min(args.limit or len(dataset), len(dataset))))
    loader = evaluation_loader(rows, args.batch_size, workers=args.workers)
    ask = functools.partial(answer, opened, device)

    # Evaluate
    notes = SampleNotes(end_id=opened.tokenizer([""])[0][0, 1].item())
    sheet = SampleSheet(dataset.questions, SHEET_ROWS)
    meter = fusion_metrics.FusionMeter(len(rows)) if args.fusion_metrics else None
    text = ablation.TextAblation(swapped(dataset, args.seed).questions, ask) if args.text_ablation else None
    if distributed.rank() == 0:
        set_aside(args.out_dir, RESULTS)
        room = reserve(args.out_dir, ROOM + ROOM_OF_ROW * len(rows))
    distributed.wait_for_all()  # no process writes before the results of an earlier run are moved
    writer = ResultWriter(args.out_dir, dataset.names, dataset.indices, args.save)
    collectors = [collector for collector in (notes, sheet, meter, text, writer) if collector is not None]

    fuser = None
    if fuses_at_size(args):
        fuser = FullSizeFuser(opened.model, device, args.fuse_size, args.tile)

    def on_batch(batch, output):
        if fuser is not None:
            batch["fused"] = fused_pictures(fuser, batch, output, notes)
        for collector in collectors:
            collector.add(batch, output)

    bad_rows = []
    metrics, counts = evaluate(opened.model, loader, device, args.iou_thresholds, on_batch, bad_rows)

    # Gather
    for collector in collectors:
        collector.gather()
    if distributed.rank() > 0:
        return
    results = metrics | describe(args, opened, device, dataset, counts, notes, bad_rows)
    evaluated = usable_rows(counts)
    if meter:
        results["fusion_metrics"] = meter.summary(evaluated)
    if text:
        images, _ = notes.tell_apart(dataset.names, evaluated.tolist())
        results["text_ablation"] = text.summary(counts, evaluated)
        results["text_contrast"] = text.contrast_summary(evaluated, images, args.seed)

    # Write: numbers first, since they are small and took the time
    room.close()
    written, errors = [], list(writer.errors)
    pictures = notes.pictures if results["bootstrap"]["images_by"] == "content" else None
    with writing("metrics.json", args.out_dir, written, errors) as path:
        write_json(path, results)
    with writing("per_sample.csv", args.out_dir, written, errors) as path:
        columns = (meter.columns() if meter else {}) | (text.columns() if text else {})
        write_samples(path, dataset, counts, columns, pictures)
    print_results(args, results)
    iou = sample_iou(counts[evaluated]).numpy()
    picked = report.pick_samples(iou, evaluated.numpy())
    entries = {kind: [show_sample(dataset, row, counts, ask) for row in chosen] for kind, chosen in picked.items()}
    pairs = [show_sentences(dataset, rows[0], text.swapped[rows[0]], ask) for rows in picked.values()] if text else []
    with writing("report.html", args.out_dir, written, errors) as path:
        report.write_report(path, results, iou, entries, note_lines(results), pairs)
    with writing("contact_sheet.png", args.out_dir, written, errors) as path:
        sheet.save(path)
    if not writer.errors:
        written += [f"{folder}/" for folder in writer.folders]
    print(f"in {args.out_dir}: {', '.join(written) or 'nothing'}")
    if errors:
        raise InputError(f"{errors[0]}; the figures are printed above")


@contextlib.contextmanager
def writing(name: str, out_dir: str, written: list[str], errors: list[str]):
    """A context in which the file `name` is written to its path; if that fails, the other files are still written.

    Args:
        written: `name` is appended to it on success,
        errors: and the sentence that says why not on failure.
    """
    try:
        yield os.path.join(out_dir, name)
        written.append(name)
    except InputError as error:
        errors.append(str(error))


def open_model(args: Namespace, device: torch.device) -> OpenCheckpoint:
    """The checkpoint of `--ckpt`, to be run as the flags say."""
    with naming("ckpt"):
        return open_checkpoint(args.ckpt, device, flip=args.tta == "flip", amp=args.amp, compiled=args.torchcompile,
                               keep_memory=True, **checkpoint_flags(args))


def open_data_set(args: Namespace, opened: OpenCheckpoint) -> MMRISDataset:
    """The rows to evaluate, those of `--limit` and more; with `--shuffle_text` with swapped sentences."""
    dataset = MMRISDataset(args.test_parquet, opened.tokenizer, opened.img_size, originals=True,
                           lumas=args.fusion_metrics, bad_rows=args.bad_rows, exact=True,
                           fused=opened.fusion_method == "given" and not args.fused_images,
                           pictures=fuses_at_size(args))
    if args.fused_images:
        with naming("fused_images"):
            dataset.fused_files = find_fused(args, dataset)
    return swapped(dataset, args.seed) if args.shuffle_text else dataset


def find_fused(args: Namespace, dataset: MMRISDataset) -> list[str | None]:
    """The picture in `--fused_images` of each row of the data set.

    Raises:
        InputError: rows that are to be evaluated have none; not so for some of them with `--bad_rows skip`.
    """
    paths = match_rows(args.fused_images, dataset.names, dataset.indices).paths
    rows = range(len(paths))[:args.limit or None]
    missing = [row for row in rows if paths[row] is None]
    if missing and (args.bad_rows == "stop" or len(missing) == len(rows)):
        listed = ", ".join(f"{printable(dataset.names[row])} (index {dataset.indices[row]})"
                           for row in missing[:MOST_INDICES]) + (" …" if len(missing) > MOST_INDICES else "")
        raise InputError(f"{printable(args.fused_images)} has no picture of {len(missing)} of "
                         f"{counted(len(rows), 'row')}: {listed}")
    return paths


def fuses_at_size(args: Namespace) -> bool:
    """Whether fused pictures of another size than the networks' are needed."""
    return args.fuse_size != "network" and (args.fusion_metrics or "fusion" in FOLDERS[args.save])


def fused_pictures(fuser: FullSizeFuser, batch: dict, output, notes: SampleNotes) -> list[np.ndarray]:
    """The fused image of each sample of a batch, loaded with its `pictures`, as (h, w, 3) uint8.

    Where it is not finite, that of the model's output stands in, and the row is noted.
    """
    pictures = []
    for i, row in enumerate(batch["row"].tolist()):
        try:
            pair = fuser.encode(*batch["pictures"][i])
            ids, mask = (batch[name][i:i + 1].to(fuser.device) for name in ("input_ids", "attention_mask"))
            pictures.append(fuser.fuse(pair, fuser.model.encode_text(ids, mask)))
        except ValueError:
            notes.not_finite.add(row)
            pictures.append(to_image(output.fused[i]))
    return pictures


def swapped(dataset: MMRISDataset, seed: int) -> MMRISDataset:
    """The same rows with their sentences swapped."""
    other = copy.copy(dataset)
    other.shuffle_text(seed)
    return other


@torch.inference_mode()
def answer(opened: OpenCheckpoint, device: torch.device, batch: dict, sentences: list[str]):
    """The model's output for a batch with other sentences."""
    batch = batch | dict(zip(("input_ids", "attention_mask"), opened.tokenizer(sentences), strict=True))
    return opened.model(*(tensor.to(device) for tensor in inputs_of(batch)))


def show_sample(dataset: MMRISDataset, row: int, counts: torch.Tensor, ask) -> dict:
    """What the report shows of a row. The model runs again, since which rows are shown is known only now."""
    question = dataset.questions[row]
    sample = collate([dataset[row]])
    pictures = sample_pictures(sample, ask(sample, [question]), 0)
    return report.sample_entry(question, float(sample_iou(counts[[row]])), dataset.indices[row], dataset.names[row],
                               pictures, sample["size"][0])


def show_sentences(dataset: MMRISDataset, row: int, other: str, ask) -> dict:
    """What the report shows of a row's fused image with its own sentence and with an `other` one."""
    own, sample = dataset.questions[row], collate([dataset[row]])
    images = [ask(sample, [sentence]).fused[0].float().cpu() for sentence in (own, other)]
    return report.sentences_entry(own, other, *images, sample["size"][0])


def describe(args: Namespace, opened: OpenCheckpoint, device: torch.device, dataset: MMRISDataset,
             counts: torch.Tensor, notes: SampleNotes, bad_rows: list[str]) -> dict:
    """What `metrics.json` holds besides the metrics of all samples: intervals, settings, notes on the samples.

    Where there are sentences that refer to nothing, also the metrics made for them.
    """
    rows = usable_rows(counts)
    counts = counts[rows]
    images, by_name = notes.tell_apart(dataset.names, rows.tolist())
    has_object = np.array([row not in notes.no_target for row in rows.tolist()])
    ratios = segmentation_ratios(*counts[:, :2].T.numpy(), args.iou_thresholds)
    further = {}
    if not has_object.all():
        further = no_target_metrics(counts, has_object)
        ratios["gIoU"] = share(generalised_scores(counts[:, 2].numpy(), sample_iou(counts).numpy(), has_object))
    settings = vars(args) | {"img_size": opened.img_size, "mha": opened.mha, "prefusion_model": opened.fusion_method}
    recorded = (*SETTINGS, *[name for name in ("fused_images", "prefusion_model") if args.fused_images])
    return further | {
        "intervals_95": bootstrap.percent_intervals(ratios, images, args.seed),
        "bootstrap": {"resamples": bootstrap.RESAMPLES, "images": len(set(images)), "seed": args.seed,
                      "images_by": "name" if by_name else "content"},
        "settings": {name: settings[name] for name in recorded} | {"device": device.type, "torch": torch.__version__},
        "notes": {"cut_sentences": len(notes.cut),
                  "lost_objects": int((has_object & (counts[:, 3] == 0).numpy()).sum()),
                  "not_finite": [dataset.indices[row] for row in sorted(notes.not_finite)]},
        "bad_rows": {"count": len(bad_rows), "messages": bad_rows}}


def note_lines(results: dict) -> list[str]:
    """What a reader of the metrics should know of the samples, in sentences."""
    notes, lines, settings = results["notes"], [], results["settings"]
    if folder := settings.get("fused_images"):
        lines.append(f"the fused images are the pictures in {printable(folder)}; the checkpoint's own fusion "
                     f"(prefusion_model {settings['prefusion_model']}) is not used")
    if results["bootstrap"]["images_by"] == "content":
        lines.append(f"image_name does not tell the pictures apart; by their content there are "
                     f"{results['bootstrap']['images']}, which the intervals resample")
    if count := results.get("num_no_target"):
        lines.append(f"{counted(count, 'sentence')} without an object: IoU 0 in all metrics but gIoU and N-acc, which "
                     "count them as right where nothing is predicted")
    if count := notes["cut_sentences"]:
        lines.append(f"{counted(count, 'sentence')} of {results['num_samples']} cut to {MAX_TOKENS} tokens")
    if count := notes["lost_objects"]:
        lines.append(f"{counted(count, 'object')} too small to have a pixel at {results['settings']['img_size']} px: "
                     "IoU 0 whatever is predicted")
    if indices := notes["not_finite"]:
        listed = ", ".join(map(str, indices[:MOST_INDICES])) + (" …" if len(indices) > MOST_INDICES else "")
        lines.append(f"WARNING: the model's output is not finite (NaN or infinity) for "
                     f"{counted(len(indices), 'sample')}, whose figures mean nothing: index {listed}")
    return lines


def print_results(args: Namespace, results: dict) -> None:
    """Print the figures and what should be known about them."""
    source = printable(args.test_parquet, LONGEST_PATH)
    print(f"{source}, sentences swapped between samples" if args.shuffle_text else source)
    plain = {name: value for name, value in results.items() if isinstance(value, int | float)}
    print(metrics_table(plain, results["intervals_95"]))
    images = counted(results["bootstrap"]["images"], "image")
    print(f"in brackets: 95% intervals, {results['bootstrap']['resamples']} bootstrap resamples of {images}")
    for line in note_lines(results):
        print(line)
    if args.text_ablation:
        print(f"\n{ablation.ablation_table(results['text_ablation'], results['text_contrast'])}")
        print("change of the fused image against that of the true sentence, inside and outside the object, of 255")
        print("contrast: |mean luma inside the object - mean luma of a ring around it| in the fused image, of 255")
    if args.fusion_metrics:
        print(f"\n{fusion_metrics.fusion_table(results['fusion_metrics'])}")
    if results["bad_rows"]["count"]:
        print(f"\n{counted(results['bad_rows']['count'], 'row')} left out:")
        for message in results["bad_rows"]["messages"]:
            print(printable(message, LONGEST_PATH))
