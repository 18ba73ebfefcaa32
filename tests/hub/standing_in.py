"""A stand-in for the hub's HTTP API on the loopback interface, with its repositories in memory."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_0123456789abcdefghij"


class StandIn:
    """What the hub knows: files by repository and path; what it does wrong, by choice."""

    def __init__(self):
        self.files = {}  # by repository: {path: bytes}
        self.private = set()
        self.stored = {}  # what LFS has, by sha256
        self.asked = []
        self.cut = False  # half a download
        self.lies = False  # hashes that are of other files
        self.uri = ""

    def commit(self, repository):
        digest = hashlib.sha1(repository.encode())
        for path, content in sorted(self.files[repository].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    def put(self, repository, files):
        self.files.setdefault(repository, {}).update(files)
        return self.commit(repository)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn

    def log_message(self, *args):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            cut = self.hub.cut and "/resolve/" in self.path
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = self.close_connection or cut

    def refuse(self, status, code, **headers):
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code, **headers)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.hub.asked.append((self.command, self.path))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            return self.resolve(*found.groups())
        if found := re.match(r"/api/models/([^/]+/[^/]+?)(/revision/([^/?]+))?(\?.*)?$", self.path):
            repository = found[1]
            if not self.visible(repository):
                return self.refuse(401, "RepoNotFound")
            commit = self.hub.commit(repository)
            names = [{"rfilename": name} for name in self.hub.files[repository]]
            return self.answer({"id": repository, "sha": commit, "siblings": names})
        if found := re.match(r"/api/models/([^/]+/[^/]+)/tree/", self.path):
            files = self.hub.files[found[1]].items()
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in files
            ]
            return self.answer(listed)
        self.refuse(404, "NotFound")

    def visible(self, repository):
        there = repository in self.hub.files
        return there and (repository not in self.hub.private or self.known)

    def resolve(self, repository, revision, name):
        if not self.visible(repository):
            return self.refuse(401, "RepoNotFound")
        commit, files = self.hub.commit(repository), self.hub.files[repository]
        if revision not in ("main", commit):
            return self.refuse(404, "RevisionNotFound")
        if name not in files:
            return self.refuse(404, "EntryNotFound", X_Repo_Commit=commit)
        content = files[name]
        hashed = content + b"x" if self.hub.lies else content
        if name.endswith(".safetensors"):
            etag = hashlib.sha256(hashed).hexdigest()
        else:
            etag = hashlib.sha1(b"blob %d\0" % len(hashed) + hashed).hexdigest()
        self.answer(content, ETag=f'"{etag}"', X_Repo_Commit=commit, X_Linked_Size=len(content))

    def do_PUT(self):
        content = self.body()
        sha256 = self.path.removeprefix("/storage/")
        if hashlib.sha256(content).hexdigest() != sha256:
            return self.refuse(400, "BadRequest")
        self.hub.stored[sha256] = content
        self.answer(b"")

    def do_POST(self):
        self.hub.asked.append((self.command, self.path))
        body = self.body()
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if not self.known:
            return self.refuse(401, "Unauthorized")
        if self.path == "/api/repos/create":
            told = json.loads(body)
            repository = f"{told['organization']}/{told['name']}"
            if told["organization"] == "others":
                return self.refuse(403, "Forbidden")
            url = {"url": f"{self.hub.uri}/{repository}"}
            if repository in self.hub.files:
                return self.answer({"error": "exists", **url}, 409)
            self.hub.files[repository] = {}
            if told.get("private") or told.get("visibility") == "private":
                self.hub.private.add(repository)
            return self.answer(url)
        if "/preupload/" in self.path:
            names = [each["path"] for each in json.loads(body)["files"]]
            modes = ["lfs" if name.endswith(".safetensors") else "regular" for name in names]
            return self.answer(
                {
                    "files": [
                        {"path": name, "uploadMode": mode, "shouldIgnore": False}
                        for name, mode in zip(names, modes, strict=True)
                    ]
                }
            )
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.uri}/storage/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if found := re.match(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            for line in body.splitlines():
                told = json.loads(line)
                if told["key"] == "file":
                    content = base64.b64decode(told["value"]["content"])
                    self.hub.put(found[1], {told["value"]["path"]: content})
                if told["key"] == "lfsFile":
                    content = self.hub.stored[told["value"]["oid"]]
                    self.hub.put(found[1], {told["value"]["path"]: content})
            commit = self.hub.commit(found[1])
            url = f"{self.hub.uri}/{found[1]}/commit/{commit}"
            return self.answer({"success": True, "commitOid": commit, "commitUrl": url})
        self.refuse(404, "NotFound")


@contextlib.contextmanager
def standing_in():
    """Serve the stand-in; give it."""
    hub = StandIn()
    kind = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    hub.uri = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
