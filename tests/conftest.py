"What the tests of runs share."
import pytest, torch

@pytest.fixture(autouse=True, scope="session")
def one_thread():
    "Runs of seconds, the same to the bit wherever they run."
    torch.set_num_threads(1)

@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts")/"animals.txt"
    path.write_text("a painting of a fox\na painting of a duck\na painting of a cow\n")
    return path
