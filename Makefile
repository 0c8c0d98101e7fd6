# Every target is a script, so that CI and a shell run the same.
# ARGS goes to the command behind the target: make test ARGS='-k config -x'

.DEFAULT_GOAL := help
.PHONY: help run test soak bench lint image clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

run: ## install, train the iris example, serve it on http://127.0.0.1:8080
	@scripts/run $(ARGS)

test: ## every test, in a few minutes
	@scripts/test $(ARGS)

soak: ## the long tests
	@scripts/soak $(ARGS)

bench: ## compare speed and memory with other servers
	@scripts/bench $(ARGS)

lint: ## style and types
	@scripts/lint

image: ## build the container image
	@scripts/image $(ARGS)

clean: ## remove what was installed and built
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f examples/iris/model.joblib examples/iris/runtime.yaml
