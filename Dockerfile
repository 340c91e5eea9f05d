# docker build -t bdx . && docker run --rm bdx              the demo: plant a backdoor, purify the model, print the table
# docker run --rm bdx make test                             the quick tests
# docker run --rm --gpus all -v "$PWD/outputs:/bdx/outputs" bdx .venv/bin/bdx attack=badnets defense=fst     a run whose records stay
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /bdx
COPY pyproject.toml constraints.txt Makefile README.md LICENSE ./
COPY backdoorbench backdoorbench
COPY hydra_plugins hydra_plugins
COPY conf conf
RUN make setup
COPY . .
CMD ["make", "demo"]
