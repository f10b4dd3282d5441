"What the tests of runs share."
import gc, io
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image

def pytest_collection_modifyitems(items):
    "Of several workers one takes all tests of a file, since they share runs; notebooks share nothing."
    for item in items:
        if item.module.__name__ != "test_notebooks": item.add_marker(pytest.mark.xdist_group(item.module.__name__))

@pytest.fixture(autouse=True, scope="session")
def one_thread():
    "Runs of seconds, the same to the bit wherever they run."
    torch.set_num_threads(1)

@pytest.fixture(autouse=True, scope="module")
def no_garbage_among_what_stays():
    "A full collection goes through every function that was imported, a tenth of the time of short runs: not through these."
    gc.collect()
    gc.freeze()

@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts")/"animals.txt"
    path.write_text("a painting of a fox\na painting of a duck\na painting of a cow\n")
    return path

@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    "A pipeline of 16-pixel images around a UNet with random weights, for runs of hundreds of epochs."
    from prdp_nb.emoji import load_pipeline
    from prdp_nb.emoji_model import make_unet
    from prdp_nb.loading import quiet_loading
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    with quiet_loading():
        pipe = load_pipeline()
        pipe.unet = make_unet(sample_size=2, block_out_channels=(16, 32))
        pipe.save_pretrained(folder)
    return folder

@pytest.fixture(scope="module")
def quick_pictures():
    "For runs whose pictures nobody looks at: noise of their size in place of curves and gallery, which are a third of a short run."
    from prdp_nb import training
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)).save(content, "PNG")
    def write(*given): next(one for one in given if isinstance(one, Path)).write_bytes(content.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_curves", "draw_gallery"): patch.setattr(training, name, write)
        yield
