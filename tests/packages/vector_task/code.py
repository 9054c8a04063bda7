"""What the task does with torch: `tunesmith.tasks.task.Task`."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from tunesmith.catalog import ModelSpec
from tunesmith.errors import DamagedFiles, InvalidQuestion
from tunesmith.inference.engine import Completion, Sampling
from tunesmith.options import Decided
from tunesmith.registry import TunedModel
from tunesmith.tasks import task
from tunesmith.tasks.task import Agreement, Told
from vector_task.rows import Point


class Config(PretrainedConfig):
    model_type = "vector_numbers"

    def __init__(self, inputs: int = 2, width: int = 16, **more: Any) -> None:
        super().__init__(**more)
        self.inputs, self.width = inputs, width


class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layers = nn.Sequential(
            nn.Linear(config.inputs, config.width),
            nn.Tanh(),
            nn.Dropout(0.02),
            nn.Linear(config.width, 1),
        )
        self.post_init()

    def forward(self, vectors_BN: Tensor) -> Tensor:
        return self.layers(vectors_BN).squeeze(-1)


def load(
    spec: ModelSpec,
    device: torch.device,
    encoder: int,
    decided: Decided | None = None,
) -> Model:
    return load_tuned(Path(spec.folder), device, encoder)


def load_tuned(folder: Path, device: torch.device, encoder: int) -> Model:
    return Model.from_pretrained(folder, local_files_only=True).to(device).eval()


def room(model: Model) -> int:
    return 4096


def why_slower(model: Model, rows: Sequence[Point]) -> str:
    return ""


def together(
    model: Model, rows: Sequence[Point], most: int, most_rows: int | None = None
) -> list[list[int]]:
    n = max(1, min(most // max(r.size for r in rows), most_rows or len(rows)))
    return [list(range(len(rows)))[i : i + n] for i in range(0, len(rows), n)]


def losses(model: Model, rows: Sequence[Point]) -> tuple[Tensor, Tensor]:
    wanted = torch.tensor([float(r.row.completion) for r in rows])
    found = model(torch.tensor([r.vector for r in rows]))
    return (found - wanted).square(), torch.arange(len(rows))


class Engine:
    adapters = adapter = None

    def __init__(self, model: Model, encoder: int) -> None:
        self.model, self.encoder = model.eval(), encoder

    def must_take(self, question: list[float]) -> None:
        if len(question) != self.encoder:
            reason = f"it has {len(question)} numbers, the model takes {self.encoder}"
            raise InvalidQuestion(task="vector_to_number", reason=reason)

    @torch.inference_mode()
    def generate(
        self, questions: Sequence[list[float]], sampling: Sampling, told: Told | None = None
    ) -> list[Completion]:
        for question in questions:
            self.must_take(question)
        found = self.model(torch.tensor(questions)).tolist()
        return [
            Completion(f"{x:.4f}", len(q), 1, True) for q, x in zip(questions, found, strict=True)
        ]

    def stream(self, question: list[float], sampling: Sampling) -> Iterator[Completion]:
        yield from self.generate([question], sampling)


def words(rows: Sequence[Point]) -> set[int]:
    return set()


def rates(model: Model, decided: Decided) -> dict[str, float]:
    return {}


def remembering(
    model: Model, rows: Sequence[Point], home: Path, base: str
) -> AbstractContextManager[str]:
    return nullcontext("")


def finish(model: Model, validation: Sequence[Point], encoder: int) -> dict[str, dict[str, Any]]:
    return {}


def engine_of(model: Model, encoder: int, spec: ModelSpec) -> Engine:
    return Engine(model, encoder)


def untuned(spec: ModelSpec, device: str, encoder: int) -> Engine:
    return engine_of(load(spec, torch.device("cpu"), encoder), encoder, spec)


def engine(tuned: TunedModel, device: str, shared: Any = None) -> Engine:
    model = load_tuned(Path(tuned.folder or tuned.base.folder), torch.device("cpu"), 0)
    return Engine(model, model.config.inputs)


def answer_all(
    asked: Sequence[tuple[Engine, list[float]]], sampling: Sampling, told: Told | None = None
) -> list[Completion]:
    return [engine.generate([question], sampling)[0] for engine, question in asked]


@dataclass(frozen=True)
class Probes:
    vectors: Tensor
    numbers: Tensor
    stop_rate = 1.0

    @property
    def count(self) -> int:
        return len(self.numbers)

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Model, vectors: Tensor) -> Self:
        return cls(vectors, model(vectors))

    def save(self, folder: Path) -> None:
        save_file({"vectors": self.vectors, "numbers": self.numbers}, folder / "probes.safetensors")

    @torch.inference_mode()
    def replay(self, model: Model) -> Agreement:
        found = model(self.vectors)
        apart = (found - self.numbers).abs()
        equal = int((apart <= 1e-4).sum())
        return Agreement(equal, 0, equal / self.count, float(apart.mean()), found)

    def differing(self, a: Agreement, b: Agreement) -> int:
        return int(((a.seen - b.seen).abs() > 1e-3).sum())


def probe(engine: Engine, rows: Sequence[Point]) -> Probes:
    vectors = torch.tensor([r.vector for r in rows[:48]])
    more = torch.arange(-16, 16).unsqueeze(1).expand(-1, engine.encoder) / 8
    return Probes.of(engine.model, torch.cat([vectors, more]))


def probes_of(folder: Path) -> Probes:
    try:
        return Probes(**load_file(folder / "probes.safetensors"))
    except Exception as e:
        raise DamagedFiles(folder=str(folder), reason=str(e)) from None


class Exam(task.Exam[Point]):
    def answers(self, engine: Engine, told: Told, examples: Sequence[Any] = ()) -> list[Completion]:
        return engine.generate([p.vector for p in self.rows], Sampling(), told)
