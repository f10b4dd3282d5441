"The chapters on Stable Diffusion v1.4: every code cell unchanged, in the smoke setting, with a hub on this machine that serves a tiny model's relatives under the real names."
import io, json, os
from pathlib import Path
import nbformat, pyarrow as pa, pyarrow.parquet as pq, pytest, torch
from nbclient import NotebookClient
from prdp_nb.clip_rewards import AestheticHead
from hub import files_of, hub_on_this_machine
from test_clip_rewards import write_clip
from tiny_sd import write_tiny_pipeline

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1]/"nbs").glob("5[01]_sd14_*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

def sources(notebook, kind): return [cell.source for cell in notebook.cells if cell.cell_type == kind]

def captions(*texts) -> bytes: # a shard of Pick-a-Pic
    out = io.BytesIO()
    pq.write_table(pa.table(dict(caption=texts, jpg_0=[b"?"]*len(texts))), out)
    return out.getvalue()

@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    "What the chapters fetch by name, in the true formats."
    folder = tmp_path_factory.mktemp("weights")
    clip = files_of(write_clip(folder))
    torch.save(AestheticHead(12).state_dict(), folder/"head.pth")
    prompts = [f"a painting of a {animal}" for animal in ("fox", "duck", "cow")]
    comparisons = [dict(human_preference=[1, 0], prompt=prompt, file_path=["a.jpg", "b.jpg"]) for prompt in prompts for _ in range(2)]
    styles = {f"benchmark/{name}.json": json.dumps([f"a {name} of a cat", f"a {name} of a dog"]).encode() for name in ("anime", "concept-art", "paintings", "photo")}
    return {"yuvalkirstain/PickScore_v1": clip, "openai/clip-vit-large-patch14": clip, "trl-lib/ddpo-aesthetic-predictor": {"aesthetic-model.pth": (folder/"head.pth").read_bytes()},
            "ymhao/HPDv2": {"train.json": json.dumps(comparisons).encode()}, "zhwang/HPDv2": styles,
            "pickapic-anonymous/pickapic_v1": {"data/train-00000-of-00001-aa.parquet": captions(*prompts), "data/test_unique-00000-of-00001-bb.parquet": captions("a hen", "an owl")}}

@each_notebook
def test_every_cell_runs(path, repositories, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    settings = dict(PRDP_RUNS="smoke", PRDP_MODEL=str(write_tiny_pipeline(tmp_path/"tiny")), OMP_NUM_THREADS="1", TQDM_DISABLE="1", PYTHONPATH=os.pathsep.join(map(str, (path.parents[1], os.environ.get("PYTHONPATH", "")))))
    with hub_on_this_machine(repositories, tmp_path/"hub") as environment:
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=dict(metadata=dict(path=str(tmp_path)))).execute(env=environment | settings)
    assert sources(notebook, "code") == sources(nbformat.read(path, as_version=4), "code")
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert "| tuned |" in "".join(output.get("data", {}).get("text/markdown", "") for output in outputs)
    runs = sorted(folder.parent.name for folder in tmp_path.glob("runs/*/final"))
    assert runs == dict(zip([p.stem for p in NOTEBOOKS], (["smoke", "smoke_kl_1"], ["paper_large_pickscore"])))[path.stem]

@each_notebook
def test_what_was_not_run_shows_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert sources(notebook, "raw") == ["---\nskip_exec: true\n---"] and notebook.cells[0].cell_type == "raw"
    assert not any(cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert notebook.metadata.accelerator == "GPU" and notebook.metadata.colab
    opening = sources(notebook, "markdown")[1]
    assert f"/nbs/{path.name})" in opening and "has been run on Stable Diffusion v1.4" in opening
