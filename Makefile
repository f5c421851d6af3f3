# The commands of the README. Each makes .venv first where it is missing or older than the lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What `make up` watches and traces; HOST, PORT, GPUS and DATABASE (postgresql+asyncpg://…) may be given too.
STORE ?= demo/store
MODEL ?= demo/model
FOLDER ?= demo/corpus

# Where the evaluations leave their store and pages.
EVALUATED ?= evaluated
SMALL := --seeds 3 --left-out 24 --tests 48

# Files of tests are shared out among so many processes: `make test WORKERS=0` runs them one after another in one.
WORKERS ?= 2

.PHONY: demo up gallery evaluate-small evaluate-language test test-e2e test-slow lint types clean

demo: $(VENV)/.installed
	$(BIN)/headwater demo

up: $(VENV)/.installed
	@exec $(BIN)/python deployments/up.py --store "$(STORE)" --model "$(MODEL)" --folder "$(FOLDER)" \
		$(if $(HOST),--host "$(HOST)") $(if $(PORT),--port "$(PORT)") $(if $(GPUS),--gpus "$(GPUS)") \
		$(if $(TRACE_CRON),--trace-cron "$(TRACE_CRON)") $(if $(DATABASE),--database "$(DATABASE)")

# The small tables of "Is it true?" in the README, on small networks.
evaluate-small: $(VENV)/.installed
	$(BIN)/headwater evaluate pbrf --store $(EVALUATED)/store --table digits $(SMALL) --cluster local \
		-o $(EVALUATED)/pbrf-digits.html
	$(BIN)/headwater evaluate pbrf --store $(EVALUATED)/store --table diabetes $(SMALL) --hidden 16,16 \
		--epochs 100 --learning-rate 0.05 --cluster local -o $(EVALUATED)/pbrf-diabetes.html
	$(BIN)/headwater evaluate loo --store $(EVALUATED)/store --table digits --cluster local \
		-o $(EVALUATED)/loo-digits.html
	$(BIN)/headwater evaluate mislabelled --store $(EVALUATED)/store --table digits --cluster local \
		-o $(EVALUATED)/mislabelled-digits.html

# The tables of "Is it true?" of a language model, an hour of one core: TEXTS is a corpus file, TAUGHT the model.
evaluate-language: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/retraining_inputs.py "$(TEXTS)" --work $(EVALUATED)/language \
		--documents 40 --queries 24
	$(BIN)/headwater evaluate lds --store $(EVALUATED)/language/store --model "$(TAUGHT)" \
		--corpus $(EVALUATED)/language/taught.parquet --queries $(EVALUATED)/language/queries.jsonl \
		--sequence-length 64 --modules all --epochs 3 --batch-size 16 --learning-rate 1e-3 \
		--subsets 40 --seeds 5 --removals 6 --methods ekfac,kfac,cg,identity,tracin,embedding \
		--solver-sequences 128 --iterations 10 --dampings 1,10 --swept ekfac,cg -o $(EVALUATED)/lds.html

# The gallery of the README: every study on the demo and on MODEL with the CORPUS that it was trained on, two hours of one
# core at most; SENTENCES has a column for each language, PUBLISHED holds queries with their groups.
gallery: demo
	$(BIN)/python tests/benchmarks/gallery.py --model "$(MODEL)" --corpus "$(CORPUS)" --sentences "$(SENTENCES)" \
		--published "$(PUBLISHED)" --work $(EVALUATED)/gallery

test: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow and not e2e" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-e2e: $(VENV)/.installed
	$(BIN)/python -m pytest -m e2e

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed
	$(BIN)/pyright

# torch comes last and by itself: one for accelerators needs libraries of its own, other ones on each platform.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) demo evaluated
