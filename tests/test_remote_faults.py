"""Room 15: services that misbehave. Each request ends within its deadline, with one line that says
what came; the options of a service and its proxy are part of what is kept and said."""
import asyncio, socket, threading, time
import numpy as np, pytest
from PIL import Image
from prdp_nb.remote_rewards import LONGEST, OPTIONS, HTTPReward, is_local
from prdp_nb.rewards import RewardError, as_reward, compute_rewards, load_reward, parse_reward

IMAGES, PROMPTS = [Image.new("RGB", (9, 7))]*3, ["a fox", "a cow", "a duck"]
DEADLINE = 0.5 # seconds
LATE = 8 # seconds; a busy machine may need a few, a request without a deadline needs an hour

class Peer:
    "One connection of a service that is written by hand."
    def __init__(self, connection, done): self.connection, self.done = connection, done

    def read(self): # a whole request
        with self.connection.makefile("rb") as file:
            length = 0
            while (line := file.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"): length = int(line.split(b":")[1])
            return file.read(length)

    def send(self, text): self.connection.sendall(text if isinstance(text, bytes) else text.encode())

    def trickle(self, text): # for ever
        while not self.done.wait(0.05): self.send(text)

def head(status=200, length=None, **more):
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in more.items())]
    if length is not None: lines.append(f"Content-Length: {length}")
    return "\r\n".join(lines) + "\r\n\r\n"

def answer(body, status=200, **more):
    return head(status, len(body), **more) + body

@pytest.fixture
def serve():
    "Starts services. A function of one does what it likes with each connection."
    done, listening, threads = threading.Event(), [], []
    def start(behave):
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)
        def accept():
            while not done.is_set():
                try: connection, _ = server.accept()
                except OSError: return
                with connection:
                    try: behave(Peer(connection, done))
                    except OSError: pass
        threads.append(threading.Thread(target=accept, daemon=True))
        threads[-1].start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/score"
    yield start
    done.set()
    for server in listening:
        try: server.shutdown(socket.SHUT_RDWR)
        except OSError: pass
        server.close()

def message(reward) -> str: # one line
    with pytest.raises(RewardError) as caught: compute_rewards(reward, IMAGES, PROMPTS)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600
    return said

def reading(then): # a service that reads the request, and then does something
    def behave(peer):
        peer.read()
        then(peer)
    return behave

def saying(*arguments, **more): return reading(lambda peer: peer.send(answer(*arguments, **more)))

def waiting(peer): peer.done.wait(60)

def dying(peer): peer.send(head(200, 500) + '{"scores": [1, ')

def flooding(peer):
    peer.send(head(200, 10**12))
    while not peer.done.is_set(): peer.send(b" "*(1 << 16))

def trickled_body(peer):
    peer.send(head(200, 10**6))
    peer.trickle(" ")

def trickled_head(peer):
    peer.send("HTTP/1.1 200 OK\r\nX-Padding: ")
    peer.trickle("x")

def kept_informed(peer): # "102 Processing", as often as one likes
    peer.trickle("HTTP/1.1 102 Processing\r\n\r\n")

NO_ANSWER = "gave no answer within 0.5 s, expected 3 scores: see that the service is up"
BAD = { # what the service does, what is said
    "never accepts a word": (waiting, NO_ANSWER),
    "silent": (reading(waiting), NO_ANSWER),
    "a byte at a time": (reading(trickled_body), NO_ANSWER),
    "a byte at a time of its head": (reading(trickled_head), NO_ANSWER),
    "always busy": (reading(kept_informed), NO_ANSWER),
    "huge": (reading(flooding), f"answered more than {LONGEST:,} bytes, '"),
    "a huge error": (saying("x"*3*LONGEST, 500), "answered with HTTP status 500, 'xxx"),
    "elsewhere": (saying("", 307, Location="http://127.0.0.1:1/"),
                  "redirects are not followed; give the address that it points to, http://127.0"),
    "no JSON": (saying("<html>"), "answered '<html>', which is not JSON"),
    "bottomless JSON": (saying("["*100_000), "which is not JSON"),
    "a number too long": (saying('{"scores": [1, 2, ' + "9"*5000 + "]}"), "which is not JSON"),
    "a number too large": (saying('{"scores": [1, 2, 1e999]}'), "gave inf to image 2"),
    "wrong count": (saying('{"scores": [1, 2]}'), "returned 2 scores for 3 images"),
    "dies in its answer": (reading(dying), "cannot be asked (RemoteProtocolError: peer closed"),
    "dies at once": (lambda peer: None, "cannot be asked ("),
    "an error": (saying('{"error": "CUDA out of memory"}', 500),
                 "answered with HTTP status 500, '{\"error\": \"CUDA out of memory\"}'"),
    "no HTTP": (reading(lambda peer: peer.send("SSH-2.0-OpenSSH\r\n\r\n")),
                "cannot be asked (RemoteProtocolError: ")}

@pytest.mark.parametrize("behave, expected", BAD.values(), ids=BAD)
def test_a_bad_service_is_one_line_within_its_deadline(serve, behave, expected):
    url = f"{serve(behave)}#timeout={DEADLINE}"
    if not expected.startswith("gave no answer"): url = url.split("#")[0]
    reward, started = as_reward(url), time.monotonic()
    said = message(reward)
    assert said.startswith(f"reward {url} ") and expected in said
    assert time.monotonic() - started < LATE

def test_a_service_that_reads_slowly(serve):
    url, started = f"{serve(waiting)}#timeout={DEADLINE}", time.monotonic()
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    with pytest.raises(RewardError, match="gave no answer"): # more than the sockets hold
        compute_rewards(as_reward(url), [Image.fromarray(pixels)]*2, PROMPTS[:2])
    assert time.monotonic() - started < LATE

def test_a_slow_service_that_ends_in_time_is_no_error(serve):
    def slow(peer):
        body = '{"scores": [1, 2, 3]}'
        peer.send(head(200, len(body)))
        for sign in body:
            time.sleep(0.005)
            peer.send(sign)
    reward = HTTPReward(serve(reading(slow)), timeout=60)
    assert compute_rewards(reward, IMAGES, PROMPTS).tolist() == [1, 2, 3]

def test_every_request_has_a_deadline_of_its_own(serve):
    def slow(peer):
        time.sleep(0.2)
        peer.send(answer('{"scores": [1]}'))
    reward = HTTPReward(serve(reading(slow)), timeout=5, batch_size=1)
    assert compute_rewards(reward, IMAGES, PROMPTS).tolist() == [1, 1, 1]

def test_it_can_be_asked_where_an_event_loop_runs(serve): # as in a notebook
    reward = HTTPReward(serve(saying('{"scores": [1, 2, 3]}')))
    async def cell(): return compute_rewards(reward, IMAGES, PROMPTS).tolist()
    assert asyncio.run(cell()) == [1, 2, 3]

# Options

def test_options_are_part_of_the_name_and_come_back_with_it(serve):
    url = serve(saying('{"scores": [1, 2, 3]}'))
    for reward in (HTTPReward(url, timeout=300, batch_size=8),
                   HTTPReward(f"{url}#batch_size=8,timeout=3e2")):
        assert str(reward) == f"{url}#timeout=300,batch_size=8"
        again = load_reward(str(0.5*reward)).terms()[0][1]
        assert (again.url, again.timeout, again.batch_size) == (url, 300, 8)
    assert str(HTTPReward(url)) == str(HTTPReward(f"{url}#")) == url
    assert str(HTTPReward(url, **OPTIONS)) == url
    long = str(HTTPReward(url, timeout=1e7))
    assert long == f"{url}#timeout=1e+07" # a plus that joins no terms
    assert parse_reward(f"2*{long} + colourfulness") == [(2, long), (1, "colourfulness")]

def test_no_service_gets_to_see_its_options(serve):
    seen = []
    def look(peer):
        seen.append(peer.connection.recv(1 << 16, socket.MSG_PEEK))
        peer.read()
        peer.send(answer('{"scores": [1, 2, 3]}'))
    compute_rewards(f"{serve(look)}#timeout=20", IMAGES, PROMPTS)
    assert b"timeout" not in seen[0] and seen[0].startswith(b"POST /score HTTP/1.1\r\n")

@pytest.mark.parametrize("options, expected", [
    ("timout=3", "unknown option of a service 'timout'; the nearest is 'timeout'"),
    ("headers=x", "unknown option of a service 'headers'"),
    ("timeout=long", "timeout must be of type float, not 'long'"),
    ("timeout", "timeout must be of type float, not ''"),
    ("batch_size=2.5", "batch_size must be of type int, not '2.5'"),
    ("batch_size=0", "batch_size must be at least 1, not 0"),
    ("timeout=-1", "timeout must be a number of seconds above 0, not -1"),
    ("timeout=inf", "not inf"), ("section", "unknown option of a service 'section'")])
def test_options_that_cannot_be_right(options, expected):
    with pytest.raises(ValueError) as caught: as_reward(f"http://127.0.0.1:8000/score#{options}")
    assert expected in str(caught.value)

# Proxies

@pytest.fixture
def proxy(serve, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return lambda behave: serve(behave).removesuffix("/score")

@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_service_on_this_machine_is_asked_without_a_proxy(name, serve, proxy, monkeypatch):
    monkeypatch.setenv(name, proxy(saying("the proxy", 503)))
    url = serve(saying('{"scores": [1, 2, 3]}'))
    for address in (url, url.replace("127.0.0.1", "localhost")):
        assert compute_rewards(address, IMAGES, PROMPTS).tolist() == [1, 2, 3]

@pytest.mark.parametrize("behave, expected", [
    (saying("no such host", 502), "answered with HTTP status 502, 'no such host'"),
    (saying("", 407), "answered with HTTP status 407"),
    (lambda peer: None, "cannot be asked ("), (reading(waiting), "gave no answer")])
def test_an_error_behind_a_proxy_names_the_proxy_and_keeps_its_password(behave, expected, proxy,
                                                                       monkeypatch):
    monkeypatch.setenv("http_proxy", proxy(behave).replace("//", "//me:secret@"))
    said = message(f"http://scores.invalid/score#timeout={DEADLINE}")
    assert expected in said and "secret" not in said
    assert said.endswith("; it was asked through the proxy that http_proxy names: put "
                         "scores.invalid into no_proxy where it needs none")
    monkeypatch.setenv("no_proxy", "scores.invalid")
    assert "proxy" not in message(f"http://scores.invalid/score#timeout={DEADLINE}")

@pytest.mark.parametrize("host, local", [
    ("127.0.0.1", True), ("127.8.8.8", True), ("localhost", True), ("[::1]", True),
    ("0.0.0.0", True), ("me.localhost", True), ("192.168.0.7", False), ("notlocalhost", False),
    ("scores.example.org", False)])
def test_what_is_on_this_machine(host, local): assert is_local(f"http://{host}:8000/x") is local
