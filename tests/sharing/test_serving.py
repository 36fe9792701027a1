"""The entry program as a process, on folders as the platform mounts them, against nnU-Net's own predictor."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from scipy import ndimage

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet import commands
from nnunet_selma.prediction.model import ModelSettings
from nnunet_selma.sharing import segmenting, serve
from nnunet_selma.sharing.cases import Case, find_case
from nnunet_selma.sharing.editions import EDITIONS
from nnunet_selma.sharing.meta_image import Geometry, geometry_of, write_mha
from nnunet_selma.sharing.packed_model import PackedModel, read_packed_model, write_packed_model
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.nifti import NiftiVolume
from tests.conftest import REPOSITORY, write_image
from tests.plans import plans
from tests.prediction.models import stock, texture, write_model

SHAPE = (14, 22, 27)
NUCLEI, PLAQUES = (5.0, 0.54, 0.54), (4.0, 1.63, 1.63)
OBLIQUE = (0.0, 1.0, 0.0, 0.6, 0.0, 0.8, 0.8, 0.0, -0.6)
"""Rows of a matrix of three directions at right angles, which is not its transpose."""
PLATFORM = EDITIONS[2026]


def physical_plans():
    """Plans of a model that was trained on voxels of a size in µm."""
    content = plans()
    content["configurations"]["3d_fullres"]["spacing"] = [4.5, 0.8, 0.6]
    content["original_median_spacing_after_transp"] = [4.5, 0.8, 0.6]
    return content


def pack(folder, model, **settings):
    write_packed_model(PackedModel(models={"other": model}, **settings), folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelSettings:
    return write_model(tmp_path_factory.mktemp("trained") / "model", physical_plans(), folds=2)


@pytest.fixture(scope="module")
def packed(model, tmp_path_factory) -> Path:
    return pack(tmp_path_factory.mktemp("packed") / "model", model)


def write_input(folder, file, voxels, *, edition=2026, name=None, key="socket", geometry=None):
    """An input folder as the platform mounts it, with one case."""
    shutil.rmtree(folder, ignore_errors=True)
    place = EDITIONS[edition].images
    path = folder / place / file
    path.parent.mkdir(parents=True)
    if path.suffix == ".mha":
        image = sitk.GetImageFromArray(voxels)
        if geometry is not None:
            image.SetSpacing(geometry.spacing)
            image.SetOrigin(geometry.origin)
            image.SetDirection(geometry.direction)
        sitk.WriteImage(image, str(path), useCompression=True)
    else:
        tifffile.imwrite(path, voxels)
    if name is not None:
        slug = {"slug": place.split("/")[1], "relative_path": place, "is_image_kind": True}
        (folder / "inputs.json").write_text(
            json.dumps([{key: slug, "file": None, "image": {"name": name}, "value": None}])
        )
    return path


def content(folder):
    """Every path of a folder with the bytes of files, and the time of the last change of folders, where nothing may come and go either."""
    return {
        path: path.read_bytes() if path.is_file() else path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]
    }


@contextmanager
def read_only(folder):
    """Take away the right to write in a folder, for users who need one."""
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    try:
        for path in paths:
            path.chmod(modes[path] & ~0o222)
        yield
    finally:
        for path in paths:
            path.chmod(modes[path])


class Program:
    """The entry program in a process of its own."""

    def __init__(self, edition, root, model, *options):
        self.input, self.output, self.scratch = (root / name for name in ("input", "output", "tmp"))
        for folder in (self.input, self.output, self.scratch):
            folder.mkdir(exist_ok=True)
        mounted = root / "mounted"
        mounted.symlink_to(self.input)  # as the platform may do it
        places = ["--input", mounted, "--output", self.output, "--model", model, "--scratch", self.scratch]
        command = [
            sys.executable,
            "-m",
            "nnunet_selma.sharing.serve",
            "--edition",
            edition,
            *places,
            "--port",
            0,
            *options,
        ]
        self.process = subprocess.Popen(
            [*map(str, command), "--device", "cpu"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )

    def listen(self):
        """Wait for the first line, which says the port."""
        line = self.process.stdout.readline()
        assert line.startswith("listening on port "), self.process.communicate()
        self.port = int(line.split()[-1])
        return self

    def ask(self, method, path):
        """Code and text of an answer."""
        connection = HTTPConnection("localhost", self.port, timeout=300)
        try:
            connection.request(method, path, body=b"{}" if method == "POST" else None)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def end(self, timeout=300):
        """Exit code, and what was printed to both streams."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    @property
    def results(self):
        return [path for path in self.output.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def server(packed, tmp_path_factory):
    program = Program(2026, tmp_path_factory.mktemp("server"), packed).listen()
    yield program
    program.process.kill()
    program.process.communicate()


def check(file, expected, geometry, kind):
    """A segmentation is the expected one, of a type, with the geometry of its image."""
    image = sitk.ReadImage(str(file))
    assert image.GetPixelID() == kind
    assert image.GetSpacing() == pytest.approx(geometry.spacing)
    assert image.GetOrigin() == pytest.approx(geometry.origin)
    assert image.GetDirection() == pytest.approx(geometry.direction)
    mask = sitk.GetArrayFromImage(image)
    assert 0 < mask.mean() < 1
    assert np.array_equal(mask, expected)


def test_two_cases_one_after_another(server, model, rng):
    """Voxel sizes come from the names; the first header states another one, the second file none."""
    geometry = Geometry((0.5, 0.7, 0.9), (10.0, -20.5, 30.25), OBLIQUE)
    for file, name, key, where, size in (
        ("5f0c.mha", "cell_nuclei_2301.mha", "socket", geometry, NUCLEI),
        ("77aa.tif", "AD_plaques_7.tif", "interface", Geometry(), PLAQUES),
    ):
        voxels = texture(rng, SHAPE)
        write_input(server.input, file, voxels[0], name=name, key=key, geometry=where)
        before = content(server.input)
        with read_only(server.input):
            assert server.ask("POST", "/invoke") == (201, "the segmentation is written\n")
        assert content(server.input) == before
        assert server.results == [server.output / "images/isolated-biological-structure/output.mha"]
        check(server.results[0], stock(model, voxels, size), where, sitk.sitkInt8)
    assert not list(server.scratch.glob("*/*"))


def test_the_server_says_what_it_takes(server):
    assert server.ask("GET", "/health") == (200, "healthy\n")
    assert server.ask("GET", "/invoke") == (405, "/invoke takes POST\n")
    assert server.ask("GET", "/") == (404, "/: there are /health and /invoke\n")
    assert server.ask("POST", "/health")[0] == 404


def empty(folder):
    shutil.rmtree(folder / PLATFORM.images)
    (folder / PLATFORM.images).mkdir()


def no_folder(folder):
    shutil.rmtree(folder / PLATFORM.images)


def second(folder):
    shutil.copy(folder / PLATFORM.images / "a.mha", folder / PLATFORM.images / "b.TIFF")


def cut(folder):
    path = folder / PLATFORM.images / "a.mha"
    path.write_bytes(path.read_bytes()[:-2000])


def not_an_image(folder):
    (folder / PLATFORM.images / "a.mha").write_text("no image")


def other_name(name):
    def rename(folder):
        file = folder / "inputs.json"
        file.write_text(file.read_text().replace("cell_nuclei", name))

    return rename


def listed(text):
    return lambda folder: (folder / "inputs.json").write_text(text)


BAD = {
    "empty": (empty, "light-sheet-3d-microscopy: holds no image; one .mha, .tif or .tiff is needed"),
    "no folder": (no_folder, "light-sheet-3d-microscopy: there is no such folder; the image is expected there"),
    "two images": (second, "light-sheet-3d-microscopy: holds several images (a.mha, b.TIFF), and one is needed"),
    "cut short": (cut, "a.mha: cannot be read to its end"),
    "no image": (not_an_image, "a.mha: cannot be read, the file is damaged or no image"),
    "no JSON": (listed("["), "inputs.json: is no valid JSON"),
    "no list": (listed("{}"), "inputs.json: is no list of inputs as grand-challenge.org writes it"),
    "no image listed": (listed("[]"), "inputs.json: lists no images, and one is needed"),
    "strange list": (listed('[{"image": "a"}]'), "inputs.json: describes its image otherwise"),
    "voxel size unknown": (other_name("gutnerve"), "the voxel size of gutnerve_1.mha is not known"),
    "structure unknown": (other_name("kidney"), "the name begins with no structure of SELMA3D"),
}


@pytest.mark.parametrize(("spoil", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_gets_a_sentence_and_leaves_no_segmentation_of_another_case(server, rng, spoil, sentence):
    write_input(server.input, "a.mha", texture(rng, SHAPE)[0], name="cell_nuclei_1.mha")
    server.output.joinpath(PLATFORM.output).parent.mkdir(parents=True, exist_ok=True)
    server.output.joinpath(PLATFORM.output).write_text("of the case before")
    spoil(server.input)
    code, text = server.ask("POST", "/invoke")
    assert (code, server.results) == (400, [])
    assert sentence in text
    assert text.count("\n") == 1
    assert server.ask("GET", "/health")[0] == 200


@pytest.fixture(scope="module")
def slow_model(model, tmp_path_factory):
    """A model that takes minutes for a case."""
    settings = replace(model, mirroring=True, step_size=0.1)
    return pack(tmp_path_factory.mktemp("slow") / "model", settings)


def invoke_in_vain(program):
    with pytest.raises(OSError, match=r"closed|reset"):
        program.ask("POST", "/invoke")


@pytest.mark.parametrize(("edition", "code"), [(2024, 143), (2026, 0)])
def test_a_signal_ends_a_case_at_once_and_the_server_stays_healthy_before(edition, code, slow_model, tmp_path, rng):
    write_input(tmp_path / "input", "cell_nuclei_1.mha", texture(rng, (40, 44, 48))[0], edition=edition)
    program = Program(edition, tmp_path, slow_model)
    if edition == 2026:
        program.listen()
        assert program.ask("GET", "/health")[0] == 200  # while the model is loaded
        thread = threading.Thread(target=invoke_in_vain, args=(program,))
        thread.start()
    deadline = time.monotonic() + 200
    while not list(program.scratch.glob("*/*/.case.ome.zarr.partial/slabs/*")):  # the case has begun
        assert program.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if edition == 2026:
        begun = time.monotonic()
        assert program.ask("GET", "/health")[0] == 200
        assert time.monotonic() - begun < 5
    begun = time.monotonic()
    program.process.send_signal(signal.SIGTERM)
    assert program.end(timeout=5)[0] == code
    assert time.monotonic() - begun < 5
    assert program.results == []
    if edition == 2026:
        thread.join()


def test_a_container_of_2024_segments_one_case_and_ends(packed, model, tmp_path, rng):
    voxels = texture(rng, SHAPE)
    write_input(tmp_path / "input", "cell_nuclei_3.tiff", voxels[0], edition=2024)
    program = Program(2024, tmp_path, packed)
    code, out, err = program.end()
    assert (code, err) == (0, "")
    assert "cell_nuclei_3.tiff: 14×22×27 voxels of 5 × 0.54 × 0.54 µm, as in SELMA3D's brains of cell nucleus" in out
    assert program.results == [tmp_path / "output/images/brain-structure/output.mha"]
    check(program.results[0], stock(model, voxels, NUCLEI), Geometry(), sitk.sitkUInt8)
    assert list(program.scratch.iterdir()) == []


def test_a_damaged_model_ends_the_server(packed, tmp_path):
    broken = shutil.copytree(packed, tmp_path / "model")
    (broken / "models/other/fold_1/checkpoint_final.pth").unlink()
    code, _, err = Program(2026, tmp_path, broken).end()
    assert code == 2
    assert "models/other: is no complete model, fold_1/checkpoint_final.pth is missing" in err


# within this process, where nothing depends on the program


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda root: shutil.rmtree(root / "input/images"),
            "input/images/3d-brain-microscopy: there is no such folder",
        ),
        (
            lambda root: (root / "model/prediction.json").unlink(),
            "model: holds no packed model, prediction.json is missing",
        ),
        (
            lambda root: (root / "model/prediction.json").write_text("{}"),
            "model/prediction.json: is of another version",
        ),
        (
            lambda root: (root / "model/prediction.json").write_text("[1]"),
            "model/prediction.json: is of another version",
        ),
        (
            lambda root: (root / "model/prediction.json").write_text('{"format": 1}'),
            "model/prediction.json: is damaged (KeyError: 'models')",
        ),
        (
            lambda root: (root / "model/prediction.json").write_text(
                '{"format": 1, "models": {}, "router": null, "spacing_um_zyx": null}'
            ),
            "model/prediction.json: is damaged (ValueError: 0 models, and no router)",
        ),
        (lambda root: shutil.rmtree(root / "tmp"), "tmp"),
    ],
)
def test_a_container_of_2024_that_fails_says_why_and_writes_nothing(
    spoil, sentence, packed, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # would outlast the test
    monkeypatch.setenv("MPLBACKEND", "agg")
    shutil.copytree(packed, tmp_path / "model")
    write_input(tmp_path / "input", "cell_nuclei_3.tiff", np.ones(SHAPE, np.uint16), edition=2024)
    (tmp_path / "tmp").mkdir()
    spoil(tmp_path)
    places = [f"--input={tmp_path}/input", f"--output={tmp_path}/output", f"--model={tmp_path}/model"]
    assert serve.main(["--edition=2024", *places, f"--scratch={tmp_path}/tmp", "--device=cpu"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"nnunet-selma: {tmp_path}/{sentence}")
    assert err.count("\n") == 1
    assert not list((tmp_path / "output").rglob("*"))


OUT_OF_MEMORY = "CUDA out of memory.\nTried to allocate 20 GB."


@pytest.mark.parametrize(("edition", "where"), [(2024, "__init__"), (2024, "segment"), (2026, "__init__")])
def test_an_unexpected_error_is_in_the_log_and_ends_with_a_sentence(edition, where, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError(OUT_OF_MEMORY)

    methods = {"__init__": lambda *_, **__: None, where: fail}
    monkeypatch.setattr(segmenting, "Segmenter", type("Segmenter", (), methods))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("MPLBACKEND", "agg")
    write_input(tmp_path / "input", "cell_nuclei_3.tiff", np.ones(SHAPE, np.uint16), edition=edition)
    places = [f"--input={tmp_path}/input", f"--output={tmp_path}/output", f"--model={tmp_path}"]
    assert serve.main([f"--edition={edition}", *places, f"--scratch={tmp_path}", "--port=0"]) == 2
    log = capsys.readouterr().err
    assert "Traceback" in log
    assert log.splitlines()[-1] == (
        "nnunet-selma: an unexpected error, RuntimeError: CUDA out of memory. Tried to allocate 20 GB.; the log says where"
    )


def work(root, segmenter):
    return serve.Work(PLATFORM, root / "input", root / "output", segmenter, threading.Lock())


def test_the_server_stays_after_an_unexpected_error(tmp_path, capsys):
    class Failing:
        def segment(self, *_):
            raise RuntimeError(OUT_OF_MEMORY)

    loaded: Future = Future()
    loaded.set_result(Failing())
    write_input(tmp_path / "input", "cell_nuclei_1.mha", np.ones(SHAPE, np.uint16))
    with ThreadingHTTPServer(("localhost", 0), partial(serve.Handler, work(tmp_path, loaded))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        for method, path, code in (("POST", "/invoke", 500), ("GET", "/health", 200), ("POST", "/invoke", 500)):
            connection = HTTPConnection("localhost", http.server_port, timeout=60)
            connection.request(method, path)
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status == code
            assert text.count("\n") == 1
            connection.close()
        http.shutdown()
    assert "out of memory. Tried" in text
    assert capsys.readouterr().err.count("Traceback") == 2


def test_a_model_that_fails_before_the_server_listens_ends_it(tmp_path):
    failed: Future = Future()
    failed.set_exception(SelmaError("model: is damaged"))
    ended: Future = Future()

    def run():
        try:
            serve._run_server(work(tmp_path, failed), 0)
        except SelmaError as error:
            ended.set_result(str(error))

    threading.Thread(target=run, daemon=True).start()
    assert ended.result(timeout=20) == "model: is damaged"


def test_a_part_of_a_segmentation_goes_before_the_temporary_files(tmp_path, monkeypatch):
    """A platform may kill the program while it removes them."""
    part = tmp_path / "output" / f"{EDITIONS[2024].output}.partial"
    left = []

    class Scratch(serve.TemporaryDirectory):
        def __exit__(self, *error):
            left.append(part.exists())
            super().__exit__(*error)

    def stopped(*_):
        part.parent.mkdir(parents=True)
        part.write_text("half")
        raise serve._Stop

    monkeypatch.setattr(serve, "TemporaryDirectory", Scratch)
    monkeypatch.setattr(serve.Work, "segment", stopped)
    monkeypatch.setattr(segmenting, "Segmenter", lambda *_, **__: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("MPLBACKEND", "agg")
    places = [f"--output={tmp_path}/output", f"--model={tmp_path}", f"--scratch={tmp_path}"]
    assert serve.main(["--edition=2024", *places]) == 143
    assert left == [False]


def test_a_removal_that_does_not_fit_is_refused_before_the_prediction(model, tmp_path, monkeypatch):
    monkeypatch.setattr(segmenting, "predict_volume", lambda *_, **__: pytest.fail("was predicted"))
    path = write_image(tmp_path / "cell_nuclei_1.mha", np.ones(SHAPE, np.uint16))
    packed = pack(tmp_path / "packed", model, remove_below=4)
    small = segmenting.Segmenter(packed, device="cpu", max_memory=9e-5, scratch=tmp_path)
    with pytest.raises(SelmaError, match=r"cell_nuclei_1\.mha: removing small components takes about 0\.0 GB"):
        small.segment(Case(path, path.name), tmp_path / "a.mha", "uint8")


def segmenter(folder, scratch, said):
    return segmenting.Segmenter(folder, device="cpu", max_memory=None, scratch=scratch, say=said.append)


def test_every_class_is_foreground_small_components_go_and_voxels_have_no_size(tmp_path, rng):
    """A model of two classes that was trained in voxels takes a header of 1, 1, 1, and a name without a structure."""
    trained = write_model(tmp_path / "trained", labels={"background": 0, "cell": 1, "vessel": 2}, seed=8)
    voxels, said = texture(rng, SHAPE), []
    path = write_image(tmp_path / "kidney.mha", voxels[0])
    expected = stock(trained, voxels, (1, 1, 1))
    assert set(np.unique(expected)) == {0, 1, 2}
    segmenter(pack(tmp_path / "plain", trained), tmp_path, said).segment(
        Case(path, "kidney.mha"), tmp_path / "a.mha", "uint8"
    )
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.mha"))), expected > 0)
    components, _ = ndimage.label(expected > 0, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())
    kept, removed = (expected > 0) & (sizes[components] >= 4), int((sizes < 4).sum())
    assert 0 < removed < len(sizes) - 2
    packed = pack(tmp_path / "cleaned", trained, remove_below=4)
    segmenter(packed, tmp_path, said).segment(Case(path, "kidney.mha"), tmp_path / "b.mha", "uint8")
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "b.mha"))), kept)
    assert f"{removed} small components removed" in said


def test_a_router_chooses_the_model(tmp_path, rng, monkeypatch):
    trained = {name: write_model(tmp_path / name, seed=seed) for name, seed in (("cfos_neuron", 1), ("other", 2))}
    (tmp_path / "router.pt").write_text("a router")
    packed = tmp_path / "packed"
    write_packed_model(PackedModel(models=trained, router=tmp_path / "router.pt"), packed)
    assert read_packed_model(packed).router == packed / "router.pt"
    shows: dict[str, float] = {}
    monkeypatch.setattr(segmenting, "open_router", lambda path, device: path.read_text())
    monkeypatch.setattr(segmenting, "class_probabilities", lambda router, volumes: shows)
    voxels, said = texture(rng, SHAPE), []
    path = write_image(tmp_path / "a.mha", voxels[0])
    program = segmenter(packed, tmp_path, said)
    monkeypatch.setattr("nnunet_selma.prediction.start.Model", None)  # both are open for all cases
    for probabilities, name in (
        ({"cfos_neuron": 0.7, "microglia": 0.3}, "cfos_neuron"),
        ({"cfos_neuron": 0.2, "microglia": 0.8}, "other"),
    ):
        shows.update(probabilities)
        program.segment(Case(path, "a.mha"), tmp_path / "out.mha", "int8")
        expected = stock(trained[name], voxels, (1, 1, 1)) > 0
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.mha"))), expected)
    assert "shows microglia (0.80), model other" in said
    program._models.pop("other")
    with pytest.raises(SelmaError, match=r"a\.mha: shows microglia \(probability 0\.80\), for which there is no model"):
        program.segment(Case(path, "a.mha"), tmp_path / "out.mha", "int8")


@pytest.mark.parametrize(
    ("name", "header", "given", "expected"),
    [
        ("cell_nuclei_1.mha", None, None, NUCLEI),
        ("cell_nuclei_1.mha", (9.0, 2.0, 2.0), None, NUCLEI),
        ("cell_nuclei_1.mha", None, (3.0, 2.0, 1.0), (3.0, 2.0, 1.0)),
        ("gutnerve_1.mha", (9.0, 2.0, 3.0), None, (9.0, 2.0, 3.0)),
        ("kidney.mha", (9.0, 2.0, 3.0), None, (9.0, 2.0, 3.0)),
        ("shannel_cells_12.tif", None, None, NUCLEI),
    ],
)
def test_the_voxel_size_is_that_given_or_of_the_structure_or_of_the_header(
    name, header, given, expected, model, tmp_path
):
    path = write_image(tmp_path / "a.mha", np.ones((3, 4, 5), np.uint16), header)
    assert segmenting.voxel_size(Case(path, name), open_volume(path), given, model)[0] == expected


def test_a_case_without_a_list_is_named_by_its_file(tmp_path):
    path = write_input(tmp_path / "in", "microglia_7.TIF".lower(), np.ones((2, 3, 4), np.uint8))
    case = find_case(tmp_path / "in", PLATFORM)
    assert (case.path, case.structure.prefix) == (path, "microglia")
    with pytest.raises(SelmaError, match="nowhere: there is no such folder; mount the input there"):
        find_case(tmp_path / "nowhere", PLATFORM)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16"])
def test_itk_reads_what_is_written(dtype, tmp_path, rng):
    voxels = rng.integers(0, 100, (5, 6, 7)).astype(dtype)
    geometry = Geometry((0.1, 1 / 3, 2e-7), (1e6 / 7, -2.0, 0.0), OBLIQUE)
    write_mha(tmp_path / "a.mha", voxels.shape, dtype, geometry, [voxels[:2], voxels[2:]])
    image = sitk.ReadImage(str(tmp_path / "a.mha"))
    read = sitk.GetArrayFromImage(image)
    assert (read.dtype, read.tolist()) == (voxels.dtype, voxels.tolist())
    assert image.GetSpacing() == pytest.approx(geometry.spacing, rel=1e-6)
    assert image.GetOrigin() == pytest.approx(geometry.origin, rel=1e-6)
    assert image.GetDirection() == pytest.approx(OBLIQUE)
    assert geometry_of(tmp_path / "a.mha", voxels.shape) == Geometry(
        image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    )
    assert geometry_of(tmp_path / "a.mha", (7, 6, 5)) == Geometry()


def test_nothing_is_left_of_a_segmentation_that_could_not_be_written(tmp_path):
    def slabs():
        yield np.zeros((1, 3, 4))
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write_mha(tmp_path / "a.mha", (2, 3, 4), "int8", Geometry(), slabs())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_segmentation_is_that_of_nnunets_command(packed, tmp_path, rng):
    """The packed folder is a model of nnU-Net, which predicts the same voxels under a header that states their size."""
    voxels = texture(rng, SHAPE)[0]
    write_input(tmp_path / "input", "cell_nuclei_1.mha", voxels, edition=2024)
    program = Program(2024, tmp_path, packed, "--max-memory", "4")
    write_image(tmp_path / "in" / "a_0000.nii.gz", voxels, NUCLEI)
    command = [
        "nnUNetv2_predict_from_modelfolder",
        "-i",
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "-m",
        packed / "models/other",
    ]
    commands.run([*map(str, command), "-f", "0", "1", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta"])
    assert program.end()[0] == 0
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(program.results[0])))
    assert 0 < mask.mean() < 1
    assert np.array_equal(mask, NiftiVolume(tmp_path / "out" / "a.nii.gz").read())
