import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_service import FakeModelService, serving
from operator_cli import Operator, document


@pytest.fixture
def context(tmp_path: Path) -> Path:
    return tmp_path / "context.json"


@pytest.fixture
def service(context: Path) -> Iterator[FakeModelService]:
    with serving(FakeModelService(), context) as service:
        yield service


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def operator(context: Path, folder: Path) -> Operator:
    return Operator(context, folder)


@pytest.fixture(scope="session")
def first_founding(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, FakeModelService]:
    """One key folder and the server that it founded: making keys is slow on purpose."""
    directory = tmp_path_factory.mktemp("founding")
    operator = Operator(directory / "context.json", directory / "keys")
    with serving(FakeModelService(), operator.context) as service:
        document(operator.init(as_json=True))
    return operator.folder, service


@pytest.fixture
def founded(
    service: FakeModelService, operator: Operator, first_founding: tuple[Path, FakeModelService]
) -> FakeModelService:
    """A server as ``keys init`` leaves it, and a copy of the folder of its keys."""
    folder, first = first_founding
    shutil.copytree(folder, operator.folder)
    service.online = first.online
    service.keep(first.roles)
    return service
