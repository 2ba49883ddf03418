# make demo    train and evaluate a small model on synthetic scenes; results in runs/demo/
# make test    run the test suite          make lint    check style and types
# make app     the page in the browser, with the demo's model, which is trained first if there is none (docs/app.md)
# make fuzz    try random inputs for MINUTES=30, with a new seed; those that fail are kept in runs/fuzz/
# make bench   measure speed and memory beside a baseline (docs/performance.md); make bench-data: reading data alone;
#              make bench-gpu: everything about a GPU in nine minutes, with PYTHON if there is no .venv
# make roofline  predict training and evaluation on GPUs, without one (docs/performance.md)
# make study    compare fusion methods and ablations on synthetic scenes: hours, may be stopped and started again
#               (docs/study.md); shortened by STUDY="--seeds 1 --variants joint,visible"
# All but bench-gpu first install what they need into .venv, once: requirements.txt; app also requirements-app.txt;
# test, fuzz and lint also requirements-dev.txt.
# PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
MINUTES ?= 30

.PHONY: demo app test fuzz lint bench bench-data bench-gpu roofline study install install-dev clean

install: .venv/installed

install-dev: .venv/installed-dev

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: $(wildcard requirements-*.txt) .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/installed-app: requirements-app.txt .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-app.txt
	touch $@

app: .venv/installed-app
	test -f $(DEMO)/model_best_lavt.pth || $(MAKE) demo
	$(BIN)/python app.py --ckpt $(DEMO)/model_best_lavt.pth

demo: install
	rm -rf $(DEMO)
	$(BIN)/python data/synthetic.py --out $(DEMO)/data --train 1600 --val 96 --test 160 --size 96 --seed 1
	$(BIN)/python train_with_lavt.py \
	  --train_parquet $(DEMO)/data/mm_ris_train.parquet --val_parquet $(DEMO)/data/mm_ris_val.parquet \
	  --img_size 96 -b 8 -j 1 --channels-last --epochs 3 --swin_type micro --prefusion_base_ch 8 --lr_seg 1e-3 --lr_pf 1e-3 \
	  --bert_tokenizer $(DEMO)/data/bert --ck_bert $(DEMO)/data/bert \
	  --pretrained_swin_weights "" --init_from_lavt_one "" \
	  --eval_vis_dir $(DEMO)/eval_vis --output-dir $(DEMO) --device cpu
	$(BIN)/python test.py --ckpt $(DEMO)/model_best_lavt.pth --test_parquet $(DEMO)/data/mm_ris_test.parquet \
	  --out_dir $(DEMO)/test -j 1 --device cpu
	$(BIN)/python test.py --ckpt $(DEMO)/model_best_lavt.pth --test_parquet $(DEMO)/data/mm_ris_test.parquet \
	  --out_dir $(DEMO)/test_swapped -j 1 --device cpu --shuffle_text
	cp $(DEMO)/test/contact_sheet.png $(DEMO)/contact_sheet.png
	@$(BIN)/python -c "import json; \
	  true, swapped = (json.load(open('$(DEMO)/' + run + '/metrics.json'))['mIoU'] for run in ('test', 'test_swapped')); \
	  print(f'\nHeld-out scenes: mIoU {true:.1f} with their sentences, {swapped:.1f} with the sentences swapped.')"
	@echo "Look at $(DEMO)/contact_sheet.png and $(DEMO)/curves.png"

test: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

fuzz: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py --minutes $(MINUTES)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install bench-data
	for shape in demo readme; do \
	  $(BIN)/python benchmarks/bench_infer.py --shape $$shape --out runs/bench_infer_$$shape.json --profile runs/bench_infer_$$shape \
	  && $(BIN)/python benchmarks/bench_train.py --shape $$shape --out runs/bench_train_$$shape.json --profile runs/bench_train_$$shape \
	  || exit 1; done
	$(BIN)/python benchmarks/bench_scale.py --shape readme --plot runs/bench_scale.png --out runs/bench_scale.json

bench-data: install
	$(BIN)/python benchmarks/bench_data.py --out runs/bench_data.json

bench-gpu:  # installs nothing: a GPU's PyTorch is often that of its image
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/bench_gpu.py --out runs/bench_gpu

roofline: install
	$(BIN)/python benchmarks/roofline.py --amp --scaling --plot runs --out runs/roofline.json

study: install
	$(BIN)/python benchmarks/study.py $(STUDY)

clean:
	rm -rf runs .pytest_cache .ruff_cache .mypy_cache
