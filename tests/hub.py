"As much of the hub as it takes to list a repository's files and to fetch them or parts of them, on this machine."
import json, os, threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789"*4

class HubOnThisMachine(BaseHTTPRequestHandler):
    protocol_version, repositories, bytes_sent = "HTTP/1.1", {}, 0 # owner/name -> path in it -> bytes
    def log_message(self, *args): pass
    def reply(self, content, status=200, **headers):
        if not isinstance(content, bytes): content, headers["Content_Type"] = json.dumps(content).encode(), "application/json"
        self.send_response(status)
        for name, value in dict(headers, Content_Length=len(content)).items(): self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD": HubOnThisMachine.bytes_sent += self.wfile.write(content)
    def do_HEAD(self):
        path, _, query = self.path.partition("?")
        name = next((name for name in self.repositories if f"/{name}/" in f"{path}/"), None)
        if name is None: return self.reply(b"", 404, X_Error_Code="RepoNotFound")
        if "/tree/" in path: return self.reply(self.listing(self.repositories[name], path.split("/tree/")[1].partition("/")[2], "recursive=true" in query.lower()))
        if "/resolve/" in path: return self.file(self.repositories[name].get(path.split("/resolve/")[1].split("/", 1)[1]))
        self.reply(dict(id=name, sha=COMMIT, siblings=[dict(rfilename=file) for file in self.repositories[name]]))
    do_GET = do_HEAD
    def listing(self, files, folder, deep):
        prefix = f"{folder}/" if folder else ""
        inside = {file.removeprefix(prefix): file for file in files if file.startswith(prefix)}
        return ([dict(type="file", path=file, oid="a"*40, size=len(files[file])) for rest, file in inside.items() if deep or "/" not in rest]
                + [dict(type="directory", path=prefix + sub, oid="b"*40) for sub in sorted({rest.split("/")[0] for rest in inside if "/" in rest})])
    def file(self, content):
        if content is None: return self.reply(b"", 404, X_Error_Code="EntryNotFound")
        about, asked = dict(ETag=f'"{hash(content) & (1 << 63) - 1:040x}"', X_Repo_Commit=COMMIT, Accept_Ranges="bytes"), self.headers.get("range")
        if not asked: return self.reply(content, **about)
        first, last = asked.removeprefix("bytes=").split("-")
        part = content[int(first):int(last) + 1 if last else None]
        self.reply(part, 206, Content_Range=f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}", **about)

@contextmanager
def hub_on_this_machine(repositories, home):
    "Within the block it serves them; gives the environment in which a new process asks it, and keeps what it fetches in the folder `home`."
    HubOnThisMachine.repositories, HubOnThisMachine.bytes_sent = repositories, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubOnThisMachine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and not key.lower().endswith("_proxy")}
    endpoint = f"http://127.0.0.1:{server.server_port}" # read when huggingface_hub is imported
    try: yield environment | dict(HF_ENDPOINT=endpoint, HF_HOME=str(home), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")
    finally:
        server.shutdown()
        server.server_close()

def files_of(folder) -> dict[str, bytes]: # path in it -> content
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
