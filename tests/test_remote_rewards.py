"""Room 15: scoring services over loopback. The wire format, the example of the notebook as a
process of its own, a run that asks one, and every way in which one can fail."""
import base64, io, json, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from prdp_nb.commands import evaluate_command
from prdp_nb.remote_rewards import HTTPReward
from prdp_nb.rewards import Reward, RewardError, as_reward, compute_rewards, parse_reward
from prdp_nb.commands import train_command
from prdp_nb.config import Config
from prdp_nb.runs import read_metrics
from prdp_nb.training import Trainer

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ["a painting of a fox", "ein Gemälde, „東京“ 🦊", "", "a cow\nand a duck",
           "a painting of a fox"]
TINY = dict(epochs=1, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2,
            eval_images_per_prompt=1)

def noise_images(mode="RGB", size=(9, 7)):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (*size[::-1], 3), np.uint8) for _ in PROMPTS]
    return [Image.fromarray(one).convert(mode) for one in pixels]

def brightness(images, prompts): return [float(np.asarray(image).mean()) for image in images]

def flags(fields: dict) -> list[str]: # of the command line
    return [part for name, value in fields.items() for part in (f"--{name}", str(value))]

@pytest.fixture
def serve():
    """Starts services. A function of one is given the body of each request, and returns a status, a
    body and more headers, or None to hang up."""
    running = []
    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append((dict(self.headers), body))
                reply = answer(body)
                self.close_connection = reply is None
                if reply is None: return
                status, content, headers = reply
                headers = {"Content-Length": len(content), **headers}
                self.send_response(status)
                for name, value in headers.items(): self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(content)
            def log_message(self, *arguments): pass
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.requests, server.url = [], f"http://127.0.0.1:{server.server_port}/score"
        often = dict(poll_interval=0.01)
        threading.Thread(target=server.serve_forever, kwargs=often, daemon=True).start()
        running.append(server)
        return server
    yield start
    for server in running:
        server.shutdown()
        server.server_close()

def says(content, status=200, **headers): # an answer that is always the same
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda _: (status, body, headers)

def decoded(body):
    asked = json.loads(body)
    files = [base64.b64decode(png, validate=True) for png in asked["images"]]
    return [Image.open(io.BytesIO(file)) for file in files], asked["prompts"]

def scoring(body): return says(dict(scores=brightness(*decoded(body))))(body)

def message(reward, error=RewardError, number=3) -> str: # one line
    with pytest.raises(error) as caught:
        compute_rewards(reward, noise_images()[:number], PROMPTS[:number])
    assert "\n" not in str(caught.value)
    return str(caught.value)

# What is sent, what comes back

@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_images_and_prompts_arrive_as_they_are(serve, mode):
    server = serve(scoring)
    scores = compute_rewards(HTTPReward(server.url), noise_images(mode), PROMPTS)
    [(headers, body)] = server.requests
    assert headers["Content-Type"] == "application/json"
    assert set(json.loads(body)) == {"images", "prompts"}
    sent, prompts = decoded(body)
    assert prompts == PROMPTS and all(image.format == "PNG" for image in sent)
    expected = [image.convert("RGB") for image in noise_images(mode)]
    for image, original in zip(sent, expected, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(original))
    assert scores.tolist() == compute_rewards(brightness, expected, PROMPTS).tolist()

@pytest.mark.parametrize("batch_size, sizes", [(1, [1]*5), (2, [2, 2, 1]), (5, [5]), (100, [5])])
def test_requests_hold_a_batch_each_in_order(serve, batch_size, sizes):
    server = serve(scoring)
    reward = HTTPReward(server.url, batch_size=batch_size)
    scores = compute_rewards(reward, noise_images(), PROMPTS)
    assert [len(decoded(body)[0]) for _, body in server.requests] == sizes
    assert scores.tolist() == compute_rewards(brightness, noise_images(), PROMPTS).tolist()

def test_calls_from_several_threads_get_their_own_scores(serve):
    def slowly(body):
        time.sleep(0.05*len(decoded(body)[0]))
        return scoring(body)
    reward = HTTPReward(serve(slowly).url)
    assert Reward.workers == 1 < reward.workers
    numbers = (5, 1, 4, 2)
    with ThreadPoolExecutor(reward.workers) as pool:
        found = list(pool.map(lambda n: reward(noise_images()[:n], PROMPTS[:n]), numbers))
    assert found == [brightness(noise_images()[:n], PROMPTS) for n in numbers]

def test_the_example_of_the_notebook_needs_nothing_of_this_package(tmp_path, monkeypatch):
    notebook = json.loads((ROOT/"nbs/15_remote_rewards.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    [example] = [source for source in sources if "class Scoring(" in source]
    assert len(example.splitlines()) <= 32 and "prdp" not in example
    start = """
server = ThreadingHTTPServer(("127.0.0.1", 0), Scoring)
print(server.server_port, flush=True)
server.serve_forever()
"""
    (tmp_path/"service.py").write_text(example + start)
    command = [sys.executable, "-I", tmp_path/"service.py"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = process.stdout.readline().strip()
        reward = HTTPReward(f"http://127.0.0.1:{port}/score", timeout=30)
        expected = [np.float32(np.asarray(image).std()) for image in noise_images()]
        assert compute_rewards(reward, noise_images(), PROMPTS).tolist() == expected
        monkeypatch.setattr("prdp_nb.remote_rewards.encode_request", lambda images, prompts: b"{}")
        said = message(reward).replace("\\", "")
        assert "answered with HTTP status 500, '{\"error\": \"KeyError: 'images'\"}'" in said
    finally:
        process.kill()
        process.wait()

# A run

def test_a_run_asks_a_service_and_goes_on_with_it(serve, tiny_model, prompt_file, tmp_path):
    server, run = serve(scoring), tmp_path/"run"
    reward = f"0.5*{server.url} + colourfulness"
    fields = dict(TINY, model=tiny_model, prompts=prompt_file, reward=reward, output_dir=run)
    assert train_command([*flags(fields), "--eval_rewards", server.url]) == 0
    assert Config.load(run/"config.yaml").reward == reward
    assert {f"reward_mean/{server.url}", "reward_mean/Colourfulness"} < set(read_metrics(run))
    asked = len(server.requests)
    assert train_command(["--resume", str(run), "--epochs", "2"]) == 0
    assert read_metrics(run)["epoch"].tolist() == [1, 2] and len(server.requests) > asked
    options = ["--rewards", server.url, "--images_per_prompt", "1"]
    assert evaluate_command([str(run), *options]) == 0

def test_a_run_goes_on_with_a_service_that_moved_within_a_sum_and_got_another_deadline(serve, tiny_model, prompt_file, tmp_path):
    old, new = serve(scoring), serve(scoring)
    fields = TINY | dict(model=str(tiny_model), prompts=str(prompt_file), reward=f"0.5*{old.url}#timeout=30 + colourfulness",
                         eval_rewards=(), output_dir=str(tmp_path/"run"))
    run = Trainer(Config(**fields)).train()
    old.shutdown()
    resume = ["--resume", str(run), "--epochs", "2"]
    assert train_command([*resume, "--reward", f"0.5*{new.url}#timeout=90 + colourfulness"]) == 0
    metrics = read_metrics(run)
    assert metrics.epoch.tolist() == [1, 2] and not metrics.isna().any(axis=None)
    assert list(metrics.filter(like="reward_mean/")) == [f"reward_mean/{new.url}#timeout=90", "reward_mean/Colourfulness"]
    assert Config.load(run/"config.yaml").reward == f"0.5*{new.url}#timeout=90 + colourfulness"

def test_a_service_that_is_away_is_met_before_the_run_folder_is_made(serve, prompt_file, tmp_path,
                                                                     capsys):
    url = serve(says({"error": "loading"}, 503)).url
    fields = dict(output_dir=tmp_path/"run", prompts=prompt_file, prompts_per_epoch=2,
                  num_inference_steps=2, reward=url)
    assert train_command(flags(fields)) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"prdp_train: error: reward {url} answered with HTTP status 503")
    assert not (tmp_path/"run").exists()

# What must stay secret

def test_credentials_are_sent_and_nowhere_written(serve, tiny_model, prompt_file, tmp_path):
    def guarded(body):
        known = server.requests[-1][0].get("Authorization") == "Bearer secret"
        return scoring(body) if known else says("who are you?", 401)(body)
    server = serve(guarded)
    reward = HTTPReward(server.url, headers={"Authorization": "Bearer secret"})
    fields = dict(TINY, model=str(tiny_model), eval_rewards=(), prompts=str(prompt_file),
                  output_dir=str(tmp_path/"run"))
    Trainer(Config(**fields), reward).train()
    files = [path.read_bytes() for path in (tmp_path/"run").rglob("*") if path.is_file()]
    assert any(server.url.encode() in content for content in files)
    assert not any(b"secret" in content for content in files)
    assert "secret" not in f"{reward} {reward!r} {0.5*reward}"
    assert message(server.url) == (
        f"reward {server.url} answered with HTTP status 401, '\"who are you?\"'; expected status "
        "200 with scores: give its credentials, HTTPReward(url, headers=...)")

@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_credentials_do_not_follow_a_redirect(serve, status):
    other = serve(scoring)
    server = serve(says(b"", status, Location=other.url))
    said = message(HTTPReward(server.url, headers={"Authorization": "Bearer secret"}))
    assert (f"HTTP status {status}, ''; expected status 200 with scores: redirects are not "
            f"followed; give the address that it points to, {other.url}") in said
    assert len(server.requests) == 1 and not other.requests and "secret" not in said

def test_own_headers_go_before_ours_and_lose_their_blanks(serve):
    server = serve(scoring)
    own = {"content-type": "application/x-images", "X-Key": " a key "}
    compute_rewards(HTTPReward(server.url, headers=own), noise_images(), PROMPTS)
    [(headers, _)] = server.requests
    sent = {name.lower(): value for name, value in headers.items()}
    assert sent["content-type"] == "application/x-images" and sent["x-key"] == "a key"

ONE_LINE = "must be one line of ASCII text; does it end with a line break?"

@pytest.mark.parametrize("headers, expected", [
    ({"Authorization": "Bearer secret\n"}, f"the header 'Authorization' {ONE_LINE}"),
    ({"Authorization": "secrét"}, f"the header 'Authorization' {ONE_LINE}"),
    ({"X-Key": None}, f"the header 'X-Key' {ONE_LINE}"),
    ({"X Key": "secret"}, "'X Key' cannot be the name of a header"),
    ({"X-Key:": "secret"}, "'X-Key:' cannot be the name of a header")], ids=str)
def test_headers_that_cannot_be_sent(headers, expected):
    with pytest.raises(ValueError) as caught: HTTPReward("http://127.0.0.1/score", headers=headers)
    assert str(caught.value).startswith(expected) and "secr" not in str(caught.value)

# Proxies of the environment

def test_a_proxy_is_used_except_for_the_hosts_that_need_none(serve, monkeypatch):
    proxy, server = serve(scoring), serve(scoring)
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/score"))
    monkeypatch.setenv("no_proxy", "elsewhere.invalid")
    compute_rewards(HTTPReward("http://scores.invalid/score"), noise_images(), PROMPTS)
    assert len(proxy.requests) == 1
    assert "cannot be asked" in message("http://elsewhere.invalid/score")
    compute_rewards(HTTPReward(server.url), noise_images(), PROMPTS) # this machine needs none
    assert len(server.requests) == len(proxy.requests) == 1

# Addresses and settings

NEITHER = ("is neither the name of a reward nor the URL of a scoring service: expected "
           "http://HOST:PORT/PATH or https://HOST/PATH")

@pytest.mark.parametrize("url, expected", [
    ("ftp://127.0.0.1/score", f"'ftp://127.0.0.1/score' {NEITHER}"),
    ("127.0.0.1:8000/score", f"'127.0.0.1:8000/score' {NEITHER}"),
    ("localhost:8000", f"'localhost:8000' {NEITHER}"),
    ("http:/127.0.0.1/score", NEITHER),
    ("http:///score", NEITHER),
    ("my_module:my_reward", f"'my_module:my_reward' {NEITHER}"),
    ("rewards/mine.py", f"'rewards/mine.py' {NEITHER}"),
    ("http://127.0.0.1:80000/score", "cannot be read (Port out of range 0-65535): expected http"),
    ("http://127.0.0.1:port/score", "cannot be read (Port could not be cast to integer value"),
    ("http://127.0.0.999/score", "cannot be read (Invalid IPv4 address: '127.0.0.999'): expected"),
    ("http://[::1/score", "cannot be read (Invalid IPv6 URL)"),
    ("http://127.0.0.1/a b", "holds ' ': write it as %20"),
    ("http://127.0.0.1/ä", "holds 'ä': write it as %C3%A4"),
    ("http://me:secret@127.0.0.1/score", "the reward's URL of …@127.0.0.1/score holds a user or a "
                                         "password, and would be saved and printed"),
    ("me:secret@127.0.0.1/score", "holds a user or a password")])
def test_addresses_that_cannot_be_right(url, expected):
    for ask in (HTTPReward, as_reward, lambda url: as_reward(f"2*{url} + colourfulness")):
        with pytest.raises(ValueError) as caught: ask(url)
        assert expected in str(caught.value) and "secret" not in str(caught.value)

def test_signs_of_sums_are_written_otherwise_in_an_address():
    for sign, code in {"+": "%2B", "*": "%2A"}.items():
        with pytest.raises(ValueError, match=f"holds '[+*]': write it as {code}"):
            HTTPReward(f"http://127.0.0.1/a{sign}b")
        assert parse_reward(f"2*http://127.0.0.1/a{code}b") == [(2, f"http://127.0.0.1/a{code}b")]

@pytest.mark.parametrize("settings, expected", [
    (dict(timeout=0), "timeout must be a number of seconds above 0, not 0"),
    (dict(timeout=float("nan")), "not nan"),
    (dict(timeout=float("inf")), "not inf"),
    (dict(batch_size=0), "batch_size must be at least 1, not 0")], ids=str)
def test_settings_that_cannot_be_right(settings, expected):
    with pytest.raises(ValueError, match=expected): HTTPReward("http://127.0.0.1/score", **settings)

# Answers without scores

NO_SCORES = "; expected status 200 with scores: "
WANTED = "expected {\"scores\": [3 numbers]}, one for each image"
ANSWERS = { # what the service answers, what the error says after the URL
    "its own error": (says({"error": "CUDA out of memory"}, 500),
                      "answered with HTTP status 500, '{\"error\": \"CUDA out of memory\"}'"
                      f"{NO_SCORES}the log of the service says more"),
    "no such page": (says(b"not found", 404), "answered with HTTP status 404, 'not found'"
                                              f"{NO_SCORES}check the path in the URL"),
    "too large": (says(b"", 413), f"answered with HTTP status 413, ''{NO_SCORES}lower batch_size"),
    "no content": (says(b"", 204), "answered with HTTP status 204, ''"),
    "a page": (says(b"<html>\n <title>Welcome</title>" + b"x"*500),
               f"answered '<html> <title>Welcome</title>{'x'*71}…', which is not JSON; {WANTED}: "
               "is this the path"),
    "bytes": (says(b"\xff\x00"), "answered '\ufffd\\x00', which is not JSON"),
    "nothing": (says(b""), "answered '', which is not JSON"),
    "a bare list": (says([1, 2, 3]), f"answered '[1, 2, 3]'; {WANTED}: change what the service "
                                     "returns"),
    "another key": (says({"score": [1, 2, 3]}), "answered '{\"score\": [1, 2, 3]}'; expected"),
    "one number": (says({"scores": 0.5}), "answered '{\"scores\": 0.5}'; expected"),
    "too few": (says({"scores": [1, 2]}),
                f"returned 2 scores for 3 images; {WANTED}, in their order"),
    "too many": (says({"scores": [1, 2, 3, 4]}), "returned 4 scores for 3 images"),
    "a hole": (says({"scores": [1, None, 3]}),
               "returned [1, None, 3], which is not a list of numbers"),
    "a list in the list": (says({"scores": [[1, 2], 3, 4]}),
                           "returned [[1, 2], 3, 4], which is not a list of numbers"),
    "nan": (says({"scores": [1, 2, float("nan")]}),
            "gave nan to image 2 (prompt ''); a score must be a finite number"),
    "hangs up": (lambda body: None,
                 "cannot be asked (RemoteProtocolError: Server disconnected without sending a "
                 "response.), expected a scoring service there"),
    "half an answer": (says({"scores": [1, 2, 3]}, 200,
                            **{"Content-Length": 500, "Connection": "close"}),
                       "cannot be asked (RemoteProtocolError: peer closed connection without "
                       "sending complete message body"),
    "torn compression": (says({"scores": [1, 2, 3]}, **{"Content-Encoding": "gzip"}),
                         "cannot be asked (DecodingError: ")}

@pytest.mark.parametrize("answer, expected", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_without_scores(serve, answer, expected):
    url = f"{serve(answer).url}#timeout=10"
    assert message(HTTPReward(url)).startswith(f"reward {url} {expected}")

def test_a_missing_score_of_a_later_request_is_not_made_up_for_by_an_earlier_one(serve):
    counts = iter([3, 1])
    def uneven(body): return says({"scores": [0.0]*next(counts)})(body)
    reward = HTTPReward(serve(uneven).url, batch_size=2)
    assert "returned 3 scores for 2 images" in message(reward, number=4)

def test_an_image_of_a_later_request_is_named_by_its_place_in_the_call(serve):
    scores = iter([[1.0, 2.0], [3.0, float("inf")]])
    server = serve(lambda body: says({"scores": next(scores)})(body))
    said = message(HTTPReward(server.url, batch_size=2), number=4)
    assert f"gave inf to image 3 (prompt {PROMPTS[3]!r})" in said

def test_no_answer_in_time(serve):
    woken = threading.Event()
    url, started = serve(lambda body: woken.wait(10) and None).url, time.monotonic()
    said = message(HTTPReward(url, timeout=0.2))
    woken.set()
    assert said == (
        f"reward {url}#timeout=0.2 gave no answer within 0.2 s, expected 3 scores: see that the "
        f"service is up, raise timeout or lower batch_size, as in {url}#timeout=0.4,batch_size=16")
    assert time.monotonic() - started < 5

def test_nobody_listens_or_nobody_accepts():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        url = f"http://127.0.0.1:{port}/score"
        assert message(url) == (
            f"reward {url} cannot be asked (ConnectionRefusedError: [Errno 111] Connect call failed "
            f"('127.0.0.1', {port})), expected a scoring service there: start it, or check host and "
            "port of the URL")
        held.listen(1)
        url = f"{url}#timeout=0.2"
        assert f"reward {url} gave no answer within 0.2 s" in message(HTTPReward(url))

def test_another_protocol(serve):
    with socket.create_server(("127.0.0.1", 0)) as server:
        def greet():
            connection, _ = server.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1 << 16)
        threading.Thread(target=greet, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/score"
        assert "cannot be asked (RemoteProtocolError: " in message(HTTPReward(url, timeout=5))
    secure = serve(scoring).url.replace("http:", "https:")
    said = message(HTTPReward(f"{secure}#timeout=5"))
    assert f"reward {secure}#timeout=5 cannot be asked (SSLError: [SSL: " in said
